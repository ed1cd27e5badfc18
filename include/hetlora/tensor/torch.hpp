// The one door to LibTorch: ATen without autograd's and torch::nn's headers, which cost many seconds per file.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
