"""Says which torch this is and what it computes on."""


def describe_torch() -> str:
    """One line: version, device and threads."""
    import torch

    if torch.cuda.is_available():
        device = f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name(0)}"
    else:
        device = f"no CUDA, so the CPU with {torch.get_num_threads()} threads"
    return f"{torch.__version__}, {device}"
