"""LM-CLIP, reproduced: long-tail construction, samplers, losses, training and judgement."""
