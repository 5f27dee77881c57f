"""The compiled part of the package: every activation's kernels, once for each instruction set, in one library.

Optional: where it cannot be built, the package installs with a warning, and torch computes instead.
"""

import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCE = Path(__file__).parent / "src"
CPU = SOURCE / "nonlin" / "kernels" / "cpu"


class BuildKernels(build_ext):
    """Compiles the generated file once for each instruction set, and one that chooses among them."""

    def build_extension(self, ext):
        if self.compiler.compiler_type != "unix":  # such compilers know none of our vectors
            raise CompileError("the kernels are compiled by GCC or clang alone")
        sys.path.insert(0, str(SOURCE))
        try:
            from nonlin.functions.catalog import CATALOG
            from nonlin.kernels.codegen import cpp
            from nonlin.kernels.cpu import build
        finally:
            sys.path.remove(str(SOURCE))
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        isas = build.ISAS if x86 else {"portable": ()}
        with tempfile.TemporaryDirectory() as folder:
            text = cpp.unit(d for d in CATALOG if d.expr is not None)
            command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
            interleaving, headers = build.interleaving(command[0]), build.including(cpp.HEADERS)

            def compile_one(item):
                isa, flags = item
                source = Path(folder) / f"catalog_{isa}.cpp"
                source.write_text(text)
                macros = [("NL_ISA", isa)]
                return self.compiler.compile([str(source)], output_dir=folder, macros=macros,
                                             extra_postargs=[*build.KERNEL_FLAGS, *interleaving, *headers, *flags])

            with ThreadPoolExecutor(4) as pool:
                objects = [o for made in pool.map(compile_one, isas.items()) for o in made]
            driver = Path(folder) / "driver.cpp"
            driver.write_text((CPU / "catalog.cpp").read_text())
            objects += self.compiler.compile([str(driver)], output_dir=folder,
                                             include_dirs=self.include_dirs,
                                             macros=[("NL_X86", "1")] if x86 else [],
                                             extra_postargs=[*build.KERNEL_FLAGS, *headers])
            self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), target_lang="c++")


setup(ext_modules=[Extension("nonlin.kernels.cpu._catalog", sources=["src/nonlin/kernels/cpu/catalog.cpp"],
                             language="c++", optional=True)],
      cmdclass={"build_ext": BuildKernels})
