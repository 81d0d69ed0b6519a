"""Packaging: everything it says stands in settings.ini, which nbdev reads too."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


class WithNotebooks(build_py):
    "Put the experiment and report notebooks into a wheel; an editable install finds them in nbs."

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib) / cfg["lib_name"] / "notebooks"
        shutil.rmtree(target, ignore_errors=True) # of an earlier build
        for kind in ("experiments", "reports"):
            (target / kind).mkdir(parents=True)
            for notebook in (here / "nbs" / kind).glob("*.ipynb"): shutil.copy(notebook, target / kind)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"] or None,
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["l2init", "l2init.*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "bench", "recipes", "site")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    cmdclass={"build_py": WithNotebooks},
    zip_safe=False,
)
