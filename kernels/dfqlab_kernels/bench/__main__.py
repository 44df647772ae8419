"""`python -m dfqlab_kernels.bench [name ...]`, in the root of the repository.

Measures what the results file of this device does not hold yet; what is complete and asked for by name, anew.
`$DFQLAB_BENCH_RESULTS` is the folder of results, `kernels/bench/results` if it is not set;
`DFQLAB_BENCH_DEVICE=cpu` leaves a GPU alone.
"""

import sys

from dfqlab_kernels.bench.machine import results_folder, this_machine
from dfqlab_kernels.bench.record import Record
from dfqlab_kernels.bench.registry import BENCHES
from dfqlab_kernels.bench.session import Session
from dfqlab_kernels.bench.timing import Stopwatch, quiet


def main(names: list[str]) -> None:
    """Measure the named ops, or all."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"no op {unknown[0]!r} to measure; choose among {', '.join(BENCHES)}")
    quiet()
    machine = this_machine()
    stopwatch = Stopwatch(machine.kind, seconds=4.0 if machine.gpu else 2.0, rounds=50 if machine.gpu else 30)
    session = Session(machine, Record(results_folder(), machine), stopwatch)
    session.measure_rates(1 << 30 if machine.gpu else 256 << 20)
    session.run({name: BENCHES[name] for name in names or BENCHES}, named=bool(names))
    print(f"\nwrote {session.record.path}")


if __name__ == "__main__":
    main(sys.argv[1:])
