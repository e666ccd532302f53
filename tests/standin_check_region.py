"""The look at device memory of clients, over the stand-in: a program."""

from standin_cuda import StandinCuda
from stublet.shm.cuda.check_region import main
from stublet.shm.cuda.driver import NoDriver

if __name__ == "__main__":
    main(lambda: StandinCuda().driver(), NoDriver)
