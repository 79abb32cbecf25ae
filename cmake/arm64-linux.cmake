# Toolchain file: cross-build for ARM64 Linux with Debian's g++-aarch64-linux-gnu, and run tests under qemu-user.
#   cmake -S . -B build/arm64 -DCMAKE_TOOLCHAIN_FILE=cmake/arm64-linux.cmake -DZEROPOINT_TESTS=ON
# The variable QEMU_CPU chooses the emulated processor: `max` by default, cortex-a72 has neither SDOT nor SMMLA.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
