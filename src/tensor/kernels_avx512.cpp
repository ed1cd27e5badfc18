// The CPU kernels compiled for vector level `avx512`; flags in src/tensor/CMakeLists.txt.
#define HETLORA_LEVEL level_avx512
#include "kernels.inc"
