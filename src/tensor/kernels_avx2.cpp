// The CPU kernels compiled for vector level `avx2`; flags in src/tensor/CMakeLists.txt.
#define HETLORA_LEVEL level_avx2
#include "kernels.inc"
