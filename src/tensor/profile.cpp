#include "hetlora/tensor/profile.hpp"

namespace hetlora {

std::string_view name_of(StepPart part) {
    switch (part) {
        case StepPart::frozen_gemm:
            return "frozen matrices";
        case StepPart::lora:
            return "LoRA terms";
        case StepPart::attention:
            return "attention";
        case StepPart::norm_rotary:
            return "norms, rotary";
        case StepPart::swiglu:
            return "SwiGLU";
        case StepPart::head_gemm:
            return "head";
        case StepPart::cross_entropy:
            return "cross-entropy";
        case StepPart::optimizer:
            return "clip, optimiser";
        case StepPart::batch:
            return "data, pack";
        case StepPart::count:
            break;
    }
    return "other";
}

}  // namespace hetlora
