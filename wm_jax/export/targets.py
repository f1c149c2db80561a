"""The accelerators that a program can be compiled for on any machine, and how each is named to the compiler.

Source: for TPUs the topology names of libtpu, for GPUs the device properties that CUDA reports; docs/accelerators.md.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
      name: As users write it: `--target tpu_v6e`.
      platform: As JAX names it.
      topology: The smallest set of devices that the compiler knows by name.
      memory: Bytes of one device.
      kinds: What JAX calls such devices, the first as a program is exported for it; none: any of the platform.
      properties: For a GPU, what the compiler must know of it (text of XLA's GpuTargetConfigProto).
    """

    name: str
    platform: str
    topology: str
    memory: int
    kinds: tuple[str, ...] = ()
    properties: str = ""

    @property
    def has_compiler(self) -> bool:
        """Whether there is a compiler that makes its machine code without the device."""
        return bool(self.topology)

    @property
    def backend(self) -> str:
        """The platform as JAX's devices are asked for it: `fits` compares this."""
        return "gpu" if self.platform == "cuda" else self.platform

    def fits(self, platform: str, kind: str) -> bool:
        """Whether a device of this platform (as JAX's backend is called) and kind is one of these."""
        if platform != self.backend or not self.kinds:
            return platform == self.backend
        # "NVIDIA H100 80GB HBM3"; a TPU's kind is all of its name: "TPU v5" is another than "TPU v5 lite".
        return any(name in kind for name in self.kinds) if self.backend == "gpu" else kind in self.kinds


def _gpu(
    name: str, kinds: tuple[str, ...], capability: tuple[int, int], cores: int, shared_kib: int, memory: int
) -> Target:
    """A GPU; `shared_kib` is the shared memory of one core, of which a block may take all but one KiB."""
    properties = f"""
        platform_name: "CUDA"
        device_description_str: "NVIDIA {kinds[0]}"
        runtime_version {{ major: 13 minor: 0 patch: 0 }}
        dnn_version_info {{ major: 9 minor: 12 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
          core_count: {cores}
          fpus_per_core: 128
          clock_rate_ghz: 1.7
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {1024 * (shared_kib - 1)}
          shared_memory_per_core: {1024 * shared_kib}
          l2_cache_size: {50 * 2**20}
          memory_bandwidth: 3000000000000
          device_memory_size: {memory}
        }}
    """
    return Target(name, "cuda", "1x1x1", memory, kinds, properties)


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "cpu", "", 2**63),
        Target("tpu_v4", "tpu", "v4:2x2x1", 16 * GIB, ("TPU v4",)),
        Target("tpu_v5e", "tpu", "v5e:2x2", 16 * GIB, ("TPU v5 lite", "TPU v5e")),
        Target("tpu_v5p", "tpu", "v5p:2x2x1", 95 * GIB, ("TPU v5", "TPU v5p")),
        Target("tpu_v6e", "tpu", "v6e:2x2", 32 * GIB, ("TPU v6 lite", "TPU v6e")),
        Target("tpu7x", "tpu", "tpu7x:2x2x1", 96 * GIB, ("TPU7x", "TPU v7")),
        _gpu("a100", ("A100",), (8, 0), 108, 164, 80 * GIB),
        _gpu("h100", ("H100", "H200"), (9, 0), 132, 228, 80 * GIB),
        _gpu("b200", ("B200",), (10, 0), 148, 228, 180 * GIB),
        Target("trn1", "neuron", "", 16 * GIB),
        Target("trn2", "neuron", "", 24 * GIB),
    )
}
