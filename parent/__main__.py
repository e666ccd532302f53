"""``python -m stublet.parent`` is the command ``stublet``."""

from .cli.main import main

if __name__ == "__main__":
    main()
