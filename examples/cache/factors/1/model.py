"""Factorizes numbers: the larger their second largest prime factor, the longer it takes."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # Grows with what is asked: the warm-up fills it before the first client comes.
        self.primes = np.array([2, 3], dtype=np.int64)

    def execute(self, requests):
        return [self.answer(int(request.inputs()[0].as_numpy()[0])) for request in requests]

    def answer(self, number):
        if number < 1:
            # An error is not kept: it is found anew each time.
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"{number} has no prime factors", pb_utils.TritonError.INVALID_ARG)
            )
        self.sieve(int(number**0.5) + 1)
        factors = []
        for prime in self.primes:
            if prime * prime > number:
                break
            while number % prime == 0:
                factors.append(int(prime))
                number //= prime
        if number > 1:
            factors.append(number)
        return pb_utils.InferenceResponse([pb_utils.Tensor("FACTORS", np.array(factors, dtype=np.int64))])

    def sieve(self, limit):
        """Sees to it that all primes up to ``limit`` are known."""
        if self.primes[-1] >= limit:
            return
        limit *= 2
        is_prime = np.ones(limit + 1, dtype=bool)
        is_prime[:2] = False
        for number in range(2, int(limit**0.5) + 1):
            if is_prime[number]:
                is_prime[number * number :: number] = False
        self.primes = np.flatnonzero(is_prime)
