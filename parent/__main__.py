"""``python -m stublet.parent`` is the command ``stublet``."""

from .cli import main

if __name__ == "__main__":
    main()
