# SPDX-License-Identifier: Apache-2.0
"""The compiled ops in a forked child and under Ctrl-C, as README.md describes them."""

import subprocess
import sys

FORK = """
import os, time, torch, microspec_kernels as m
torch.set_num_threads(2)
hidden, weight, ids = torch.randn(4, 256), torch.randn(4000, 256), torch.arange(3000).int()
want = m.sparse_head(hidden, weight, ids, 5)  # the pool's threads exist now
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    vocab = m.ActiveVocab(4000, 3000, num_groups=2)
    vocab.update(torch.arange(3000).repeat(2, 1))
    got = m.sparse_head(hidden, weight, vocab.ids[1], 5)
    os._exit(0 if all(map(torch.equal, got, want)) else 1)
deadline = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.05)
if not ended[0]:
    os.kill(child, 9)
print("status", ended[1] if ended[0] else "hangs")
"""

INTERRUPT = """
import os, signal, threading, torch, microspec_kernels as m
hidden, weight, ids = torch.randn(64, 512), torch.randn(20000, 512), torch.arange(20000).int()
want = m.sparse_head(hidden, weight, ids, 5)
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        m.sparse_head(hidden, weight, ids, 5)
except KeyboardInterrupt:
    print("interrupted", all(map(torch.equal, m.sparse_head(hidden, weight, ids, 5), want)))
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.strip()


def test_a_forked_child_with_one_thread() -> None:
    assert run(FORK) == "status 0"


def test_interrupted_between_two_ops() -> None:
    assert run(INTERRUPT) == "interrupted True"
