"""LM-CLIP, reproduced: a long tail, its sampler, its losses, training, and judgement.

Reading order, in which data flows; no module imports one that stands below it:

    errors, paths, config          what went wrong, where things are, what a run is
    backgrounds, glyphs, glyphmlt  rendered scenes, and GlyphMLT made of them
    longtail, benchmarks, datasets head-to-tail selection; published facts; one data set class for all
    sampling, loss_terms, losses   which images are drawn; what pulls at the model
    models                         CLIP and the mini CLIP
    metrics, records, evaluation   how good; what a run leaves; which epoch counts
    training, matrix, tuning       one loop; many runs; one fair search
    pretrain                       where the mini CLIP comes from
    tables, plots                  what the notebooks show
    parameters, freshness, execution, study, cli   the runner and the command line
"""
