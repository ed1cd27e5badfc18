// The CPU kernels compiled for vector level `baseline`; flags in src/tensor/CMakeLists.txt.
#define HETLORA_LEVEL level_baseline
#include "kernels.inc"
