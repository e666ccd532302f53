"""A server under mixed load while its stubs are killed, stopped and continued at random: no wrong byte, no lost or doubled answer, no request
without an answer, nothing left behind. ``scripts/chaos --seconds 600`` for the long form; ``test_chaos`` is a short one."""
