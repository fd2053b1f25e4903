"""Measurements for kernel developers: `python -m simplear_engine.bench --help`, and `compare` for a kernel of your own.

Whatever is timed here has just passed a check against something slower and simpler. The engine never imports this
package.
"""

from simplear_engine.bench.own_kernel import Comparison, compare
from simplear_engine.kernels.op import Case

__all__ = ["Case", "Comparison", "compare"]
