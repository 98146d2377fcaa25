"""Several exchanges in groups of processes, started by test_exchange as one program.

Torch is imported once, and each rank is a fork of this process, which has no threads. Reads a JSON
object {ranks: [argument lists]} from the command line, prints {ranks: [documents]}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from typing import Any

import torch
import torch.distributed as dist

from moeplan.profile import exchange


def _rank(rank: int, ranks: int, port: int, cases: list[list[str]], out: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    exchange.start("cpu")
    documents = [exchange.run(exchange.options_of(arguments)) for arguments in cases]
    if rank == 0:
        out.send(documents)
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")
    documents = {}
    for ranks, cases in json.loads(sys.argv[1]).items():
        receive, send = forks.Pipe(duplex=False)
        port = _free_port()
        group = [
            forks.Process(target=_rank, args=(rank, int(ranks), port, cases, send))
            for rank in range(int(ranks))
        ]
        for process in group:
            process.start()
        send.close()
        try:
            documents[ranks] = receive.recv()
        except EOFError:
            sys.exit(f"no documents of {ranks} ranks")
        for process in group:
            process.join()
        if any(process.exitcode for process in group):
            sys.exit(f"exit codes of {ranks} ranks: {[process.exitcode for process in group]}")
    print(json.dumps(documents))


main()
