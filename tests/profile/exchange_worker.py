"""Several exchanges in one group of processes; test_exchange starts one for each rank.

Reads a JSON list of argument lists from the command line, prints the documents as a JSON list.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from moeplan.profile import exchange


def main() -> None:
    torch.set_num_threads(1)
    exchange._start("cpu")
    documents = [
        exchange.run(exchange._options(arguments)) for arguments in json.loads(sys.argv[1])
    ]
    if dist.get_rank() == 0:
        print(json.dumps(documents))
    dist.destroy_process_group()


main()
