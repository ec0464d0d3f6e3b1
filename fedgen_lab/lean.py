"""Fewer libraries in memory, used wherever diffusers is imported: every lab of one session shares one gigabyte."""


def leave_out_scipy():
    """Let diffusers and transformers do without scipy, which is optional to both: 56 MB and a second of importing.

    They need it for schedulers and losses that no lab uses. To be called before anything else of theirs is imported.
    """
    import diffusers.utils.import_utils as what_diffusers_finds
    import transformers.utils as what_transformers_finds

    what_diffusers_finds._scipy_available = False
    what_transformers_finds.is_scipy_available = lambda: False
