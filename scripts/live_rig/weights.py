"""The tiny models, made by the scripts under models/ the first time that they are wanted (about a minute, 7 MB).

A changed script makes its model again, in a folder of another name.
"""

import os
import pathlib
import shutil
from typing import Dict, List

from . import environment

MAKERS = pathlib.Path(__file__).parent / "models"


def recipe(name: str) -> List[str]:
    """Give all that a model depends on: its script, what the scripts share, and the versions."""
    texts = [path.read_text(encoding="utf-8") for path in (MAKERS / (name + ".py"), MAKERS / "teaching.py")]
    return texts + [environment.VLLM, environment.TORCH]


def quiet(extra: Dict[str, str]) -> Dict[str, str]:
    """Extend this process's environment so that nothing is fetched, reported or written into a home folder."""
    root = environment.cache()
    env = dict(os.environ)
    env.update({
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(root / "hf"),
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CACHE_ROOT": str(root / "vllm"),
        "VLLM_CONFIG_ROOT": str(root / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "NO_COLOR": "1", "PYTHONUNBUFFERED": "1",
    })
    for name in ("VLLM_API_KEY", "VLLM_BASE_URL", "PYTHONPATH", "PYTHONHOME"):
        env.pop(name, None)            # meant for the client; vLLM reads the first two as its own
    env.update(extra)
    return env


def model(name: str, python: str) -> pathlib.Path:
    """Give the folder of a model, made from its script if this version of it is not there yet.

    RuntimeError says why it could not be made.
    """
    script = MAKERS / (name + ".py")
    root = environment.cache()
    folder = root / ("model-%s-%s" % (name, environment.fingerprint(recipe(name))))
    with environment.locked(root):
        if not folder.exists():
            half = folder.with_name(folder.name + ".half")
            shutil.rmtree(str(half), ignore_errors=True)
            half.mkdir()
            log = root / ("model-%s.log" % name)
            log.write_bytes(b"")
            # Idle threads shall not spin on cores that others want.
            env = quiet({"OMP_WAIT_POLICY": "PASSIVE"})
            if not environment.step("make the %s model" % name, [python, str(script), str(half)], log, env):
                raise RuntimeError("the %s model could not be made: %s (all of it in %s)"
                                   % (name, environment.reason(log), log))
            half.rename(folder)
    return folder
