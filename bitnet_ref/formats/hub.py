"""A model by its name on a hub: `owner/name`, or `owner/name@revision`, as a folder on this disk.

The library huggingface_hub (extra `hub`) downloads, resumes and caches; here is what to ask it for, and what
its errors mean to a user. Only configs, tokenizers and safetensors are fetched: no pickles, no code.
HF_ENDPOINT is the hub's address, HF_HOME has its cache. Half a download is never taken for a whole one.
Read after: formats/hf_write. Read next: formats/bitnet_header.
"""

import re
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.formats.hf_about import GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from bitnet_ref.formats.safetensors_stream import INDEX, SINGLE

NAME = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,250}))?", re.ASCII)
NEEDED = ("config.json", GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, SINGLE, INDEX,
          "model-?????-of-?????.safetensors")
INSTALL = 'in a clone, pip install -U ".[hub]", or download the folder by other means and give its path'
GATED = "accept its terms on its page and log in with `hf auth login`"
AGAIN = "try again: what has arrived is kept"
MISSPELT = "correct the name or the path; of a private model, log in with `hf auth login`"


def is_name(path: str | Path) -> bool:
    """Whether it reads as a name on a hub: of that form, and nothing here is called so, or lies beside it.
    >>> is_name("owner/name@main"), is_name("a.bitnet")
    (True, False)
    """
    return (isinstance(path, str) and NAME.fullmatch(path) is not None and not Path(path).exists()
            and not Path(path.split("/")[0]).exists())


def folder_of(name_or_path: str | Path) -> Path:
    """A local path as it is; a name on a hub as the folder of its files, downloaded unless they are here.

    Raises CheckError: no library, no such name or revision, no access, no network, no safetensors in it.
    >>> folder_of(Path("model")).name                           # here already: nothing is fetched
    'model'
    """
    if not is_name(name_or_path):
        return Path(name_or_path)
    found = NAME.fullmatch(str(name_or_path))
    assert found is not None
    folder = _download(found["repo"], found["revision"])
    held = any((folder / file).is_file() for file in (SINGLE, INDEX))
    check(held and (folder / "config.json").is_file(),
          f"{name_or_path} must hold config.json and safetensors", "neither, or other formats",
          "use a model that is published as safetensors; pickles (.bin, .pt) are not read")
    return folder


def _download(repo: str, revision: str | None) -> Path:
    """The snapshot's folder, every file of NEEDED that the hub has in it."""
    hub = _library()
    try:
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=list(NEEDED)))
    except (hub.errors.HfHubHTTPError, OSError, ValueError) as e:
        raise _refusal(hub.errors, repo, revision, e) from None
    except Exception as e:                      # of the transport below, whose classes change by version
        raise CheckError(f"{repo} must come whole from the hub; got {_brief(e)}; {AGAIN}") from None


def _library() -> Any:
    """huggingface_hub. Raises CheckError: missing, or too old to tell half a download from a whole one."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise CheckError(f"a name on a hub must be fetched by huggingface_hub; got no such library; "
                         f"{INSTALL}") from None
    check(hasattr(huggingface_hub.errors, "IncompleteSnapshotError"),
          "huggingface_hub must tell half a download from a whole one",
          f"version {huggingface_hub.__version__}", INSTALL)
    return huggingface_hub


def _refusal(errors: Any, repo: str, revision: str | None, e: Exception) -> CheckError:
    """What an error of the library means."""
    if isinstance(e, errors.GatedRepoError):
        rule, got, fix = f"{repo} must be open to you", "a gated model", GATED
    elif isinstance(e, errors.RepositoryNotFoundError):
        rule, got, fix = f"{repo} must be a folder here or a model on the hub", "neither", MISSPELT
    elif isinstance(e, errors.RevisionNotFoundError):
        rule, got, fix = f"{repo} must have the revision {revision}", "none of that name", "give another"
    elif isinstance(e, errors.IncompleteSnapshotError):
        rule, got, fix = f"{repo} must be here whole", "half of it, and no hub", "go online and try again"
    elif isinstance(e, errors.LocalEntryNotFoundError):
        rule, got, fix = (f"{repo} must be a folder here, or the hub within reach", _brief(e),
                          "check the path, HF_ENDPOINT, HF_HUB_OFFLINE and the network")
    else:
        rule, got, fix = f"{repo} must come whole from the hub", _brief(e), AGAIN
    return CheckError(f"{rule}; got {got}; {fix}")


def _brief(e: Exception) -> str:
    """The first line of what an error says, with its kind."""
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0][:150]}" if lines else type(e).__name__
