"""The virtual environment of the scripts beside this file."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def enter():
    """Runs the script again, inside of the environment, unless it runs there already."""
    ready = environment()
    if Path(sys.prefix).resolve() != ready.resolve():
        python = ready / "bin" / "python"
        os.execv(python, [str(python), *sys.argv])


def environment():
    """Returns a virtual environment with what requirements.txt names. Makes it if need be."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = ROOT / "target" / "peers" / wanted
    if not (folder / "ready").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "-r", REQUIREMENTS], check=True)
        (folder / "ready").touch()
    return folder
