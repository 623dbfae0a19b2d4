import subprocess
import sys


def test_reading_and_decoding_import_neither_torch_nor_ray():
    modules = "data.decode data.index data.reading data.plan data.inspect data.convert data.quarantine data.synthetic style.bank"
    code = "; ".join(f"import ray_sassl.{name}" for name in modules.split())
    code += "; import sys; print([name for name in ('torch', 'ray', 'torchvision') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
