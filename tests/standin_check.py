"""The check of device memory, over the stand-in: a program."""

from standin_cuda import StandinCuda
from stublet.shm.cuda.check import main

if __name__ == "__main__":
    main(lambda: StandinCuda().driver())
