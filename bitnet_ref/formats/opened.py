"""A model of any format, opened: the kind is found in the file, never in its name alone.

Commands and `bitnet_ref.load` take whatever this takes: the folder of a training run or a checkpoint in it
(RUN/best is one), a Hugging Face folder, a name on a hub, a .bitnet file, a GGUF.
Read after: formats/gguf_write. Read next: formats/example.
"""

from pathlib import Path

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.formats import hf
from bitnet_ref.formats.bitnet import is_bitnet, open_bitnet
from bitnet_ref.formats.checkpoint import MARK, is_best
from bitnet_ref.formats.gguf_header import is_gguf
from bitnet_ref.formats.hub import folder_of
from bitnet_ref.formats.source import Source, open_run

KINDS = "a run's folder, a Hugging Face folder, a name on a hub, a .bitnet or a .gguf file"


def open_model(path: str | Path, i2s: str | None = None) -> Source:
    """The model in `path`, headers read and agreed.   `i2s`: layout of a GGUF's I2_S, where no other says it.

    Raises CheckError: nothing there, no model, one that is damaged or not supported.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     open_model(folder).storage
    'trits in bytes; weight_scale is the multiplier, mean|W| (autobitlinear)'
    """
    place = folder_of(path)
    kind = kind_of(place)
    check(i2s is None or kind == "gguf", "a layout of I2_S is a GGUF's", f"one for {kind}", "leave it out")
    if kind == "gguf":
        from bitnet_ref.formats.gguf_read import open_gguf

        return open_gguf(place, i2s)
    return {"hf": hf.open_hf, "bitnet": open_bitnet, "run": open_run}[kind](place)


def kind_of(place: Path) -> str:
    """run, hf, bitnet or gguf. Raises CheckError for a path that is none of them.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as hf_folder, written("bitnet") as file, written("run") as run:
    ...     kind_of(hf_folder), kind_of(file), kind_of(run)
    ('hf', 'bitnet', 'run')
    """
    if is_best(place):
        return "run"
    try:
        check(place.exists(), f"a model must be {KINDS}", f"nothing at {place}", "check the path")
        if place.is_dir():
            bare = not hf.is_folder(place) and (place / "config.json").is_file() and not any(
                place.glob("step-*")) and not (place / MARK).is_file() and not (place / "log.jsonl").is_file()
            check(not bare, f"a Hugging Face folder must hold {hf.SINGLE} or {hf.INDEX}; .bin is not read",
                  f"config.json alone in {place}", "download the safetensors files of the model")
            return "hf" if hf.is_folder(place) else "run"
        check(place.is_file(), f"a model must be {KINDS}", f"{place}, neither file nor folder",
              "copy it into a file")                       # a pipe would be waited for
        open(place, "rb").close()                          # or the reason why not
    except OSError as e:
        raise unreadable(place, e) from None
    if is_gguf(place):
        return "gguf"
    if is_bitnet(place):
        return "bitnet"
    inside = place.parent if place.name == "model.safetensors" else None
    raise CheckError(f"a model must be {KINDS}; got {place}, another kind of file; "
                     + (f"give its folder, {inside}" if inside else "ONNX, for one, is written and not read"))
