"""What the processor has, and what that means for torch, onnxruntime and llama.cpp here."""

from collections.abc import Mapping, Sequence

from edgeft.doctor.finding import Finding
from edgeft.doctor.libraries import DISTRIBUTIONS, Answer
from edgeft.errors import EdgeftError
from edgeft.machine.compute_type import ComputeType

VNNI = ("avx_vnni", "avx512_vnni")
ARM = ("neon",)
REINSTALL = "install it again on this machine, or once for all machines: make setup LLAMA_CPU=portable"


def check_processor(name: str, cores: int, present: Sequence[str], switches: Mapping[str, str]) -> Finding:
    """`present`: its instruction sets, empty where the system does not tell; `switches`: environment variables that
    hide some of them from torch."""
    facts = {"name": name, "cores": cores, "instruction_sets": list(present), "switches": dict(switches)}
    sets = " ".join(present) or "instruction sets not known on this system"
    text = f"{name}, {cores} core{'' if cores == 1 else 's'}: {sets}"
    if switches:
        hidden = " ".join(f"{name}={value}" for name, value in switches.items())
        return Finding("processor", "note", f"{text}; {hidden} hides some from torch", "", facts)
    return Finding("processor", "ok", text, "", facts)


def check_int8(present: Sequence[str]) -> Finding:
    """What becomes of onnxruntime's products of uint8 inputs and int8 weights."""
    x86 = bool(present) and not set(ARM) & set(present)
    exact = not x86 or bool(set(VNNI) & set(present))
    facts = {"sums_in_32_bits": exact if present else None}
    if not present:
        return Finding("int8", "ok", "not known on this system; edgeft's int8 files are right on any", "", facts)
    if exact:
        return Finding("int8", "ok", "products are summed in 32 bits: every int8 ONNX file is right here", "", facts)
    text = (
        "no VNNI: onnxruntime cuts sums of two int8 products to 16 bits. edgeft's int8 files fit into them; others "
        "run in a slower way, or are refused"
    )
    return Finding("int8", "ok", text, "", facts)


def check_library(module: str, answer: Answer) -> Finding:
    """Whether torch or onnxruntime loads and computes, and how."""
    topic = DISTRIBUTIONS[module]
    if isinstance(answer, EdgeftError):
        return Finding(topic, "broken", str(answer), f"install it again: pip install --force-reinstall {topic}", {})
    if module == "torch":
        gpu = f", CUDA {answer['cuda']}" if answer.get("cuda") else ""
        text = f"{answer['version']}, kernels of {answer['capability']}, {answer['threads']} threads{gpu}"
    else:
        text = f"{answer['version']}, {', '.join(answer['providers'])}"
    return Finding(topic, "ok", text, "", dict(answer))


def check_dtype(chosen: ComputeType) -> Finding:
    """What `torch_dtype: auto` is here, and why."""
    facts = {"dtype": chosen.dtype or None, "reason": chosen.reason}
    text = f"auto is {chosen}" if chosen.dtype else f"auto is measured by the first run: {chosen.reason}"
    return Finding("torch_dtype", "ok", text, "", facts)


def check_llama(version: str, answer: Answer) -> Finding:
    """How llama.cpp was compiled, and whether it runs here: `answer` is of a child that multiplied matrices."""
    topic = DISTRIBUTIONS["llama_cpp"]
    if isinstance(answer, EdgeftError):
        return Finding(topic, "broken", f"{version}: {answer}", REINSTALL, {"version": version})
    facts = {"version": version, **answer}
    features = " ".join(name for name, number in answer["features"].items() if number)
    if answer["variants"]:
        text = f"{version}, portable: kernels {answer['loaded'] or 'of one kind'} of {len(answer['variants'])} kinds"
        return Finding(topic, "ok", f"{text} ({features})", "", facts)
    text = f"{version}, compiled for processors like this one ({features}); an older one may not run it"
    return Finding(topic, "ok", text, "", facts)
