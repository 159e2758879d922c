"""`python -m hdlm` is `hdlm`."""

from hdlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
