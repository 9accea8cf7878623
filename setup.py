"""Only what pyproject.toml cannot say: the folder `demo/` is installed as `align.demo`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["align", "align.*"]), "align.demo"],
    package_dir={"align.demo": "demo"},
)
