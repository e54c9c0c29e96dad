"""Whether Triton compiles its programs, without a GPU: its interpreter takes what its compiler refuses."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

# A processor of graphics cards has so much memory to share.
MOST_SHARED = 99 * 1024

SCRIPT = """
import importlib, sys
import triton
from triton.backends.compiler import GPUTarget

for module, program, types, constants, options in eval(sys.stdin.read()):
    function = getattr(importlib.import_module(module), program)
    types |= dict.fromkeys(constants, "constexpr")
    types = {name: types.get(name, "*fp32") for name in function.arg_names}
    source = triton.compiler.ASTSource(fn=function, signature=types, constexprs=constants)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)
"""


class Program(NamedTuple):
    """One of a module's, with what is constant in it; whatever is of no type here is an array of float32."""

    module: str
    name: str
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]


def check(programs):
    """Compile them all for a Hopper GPU: to start takes longer."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    given = repr([tuple(program) for program in programs])
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=given, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared = [int(size) for size in done.stdout.split()]
    assert len(shared) == len(programs)
    assert max(shared) < MOST_SHARED
