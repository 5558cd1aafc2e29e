"""Package metadata. Tool settings live in pyproject.toml, pins in requirements/."""

from pathlib import Path

from setuptools import find_packages, setup


def requirements(name: str) -> list[str]:
    """Read one requirements/*.in file without comments and includes."""
    lines = (Path(__file__).parent / "requirements" / f"{name}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


# PostgreSQL drivers are an extra for users of the package; the pinned
# installation of `make` takes everything in runtime.in.
POSTGRES = ("dagster-postgres", "psycopg", "adbc-driver-postgresql")

setup(
    name="conversion-assets",
    version="0.1.0",
    description="Learns, for every client, which outreach turns leads into booked meetings.",
    python_requires=">=3.11",
    packages=find_packages(include=["conversion_assets", "conversion_assets.*"]),
    package_data={"conversion_assets": ["py.typed", "**/*.yaml", "**/*.mako", "**/*.sql"]},
    install_requires=[r for r in requirements("runtime") if not r.startswith(POSTGRES)],
    extras_require={
        "postgres": [r for r in requirements("runtime") if r.startswith(POSTGRES)],
        "cluster": requirements("cluster"),
        "dev": requirements("dev"),
    },
    entry_points={"console_scripts": ["conversion-assets = conversion_assets.cli:main"]},
)
