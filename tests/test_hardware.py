import platform

from vla_crl.hardware import cpu_model, hardware_name, num_cores


def test_the_hardware_names_processor_and_cores():
    assert hardware_name().startswith(cpu_model())
    assert f"{num_cores()} core" in hardware_name()


def test_without_cpuinfo_the_platform_is_asked(monkeypatch):
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    assert cpu_model() == (platform.processor() or platform.machine())
