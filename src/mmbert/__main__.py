"""``python -m mmbert`` is the ``mmbert`` command."""

from mmbert.cli.main import main

if __name__ == "__main__":
    main()
