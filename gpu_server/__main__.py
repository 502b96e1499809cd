"""`python -m gpu_server` is the `gpu-server` command."""

from gpu_server.cli import main

if __name__ == "__main__":
    main()
