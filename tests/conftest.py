"""What holds for all tests."""

import signal

# A shell starts what it puts in the background with Ctrl-C ignored, and the programs that tests start would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
