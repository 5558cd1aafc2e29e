"""`python -m conversion_assets.cli` is the command `conversion-assets`."""

from conversion_assets.cli.shell import main

main()
