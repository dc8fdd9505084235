"""LM-CLIP, reproduced: a long tail, its sampler, its losses, training, and judgement.

Reading order, in which data flows; no module imports one that stands below it:

    errors, paths, profiles, config    what went wrong, where things are, what a run is
    locks                              of two processes, the second waits
    longtail, benchmarks               head-to-tail selection; published facts
    backgrounds, glyphs, glyphmlt      rendered scenes, and GlyphMLT made of them
    annotations, sources               XML, JSON and lists; the folders of VOC and COCO
    images, splits, mlt, datasets      decoded images; one data set class; VOC-MLT and COCO-MLT; all of them
    archives, download, check          what is fetched, and what is there
    sampling, loss_terms, losses       which images are drawn; what pulls at the model
    models                             CLIP and the mini CLIP
    metrics, records, evaluation       how good; what a run leaves; which epoch counts
    learner, checkpoints               what trains; what lets it survive
    training, matrix, tuning           one loop; many runs; one fair search
    pretrain                           where the mini CLIP comes from
    published, tables, plots           what others report; what the notebooks show
    recompute, verify_pages, verify    all of it once more, and what does not match
    parameters, freshness, execution, study, cli  the runner and the command line
"""
