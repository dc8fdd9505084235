"""The one error type that this project raises on bad input."""


class LMCLIPError(ValueError):
    """Bad input, told in one sentence: what was wrong, where, and what to do about it.

    The command line prints the sentence without a traceback and exits with status 2; in a notebook
    it ends the cell. Anything else that escapes is a defect of this project.
    """
