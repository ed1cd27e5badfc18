// A small adapter layout whose sizes can be counted by hand.
#pragma once

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora::test {

inline AdapterLayout two_matrices() {
    return {.matrices = {{.name = "layers.0.q_proj", .layer = 0, .target = "q_proj", .d_out = 3, .d_in = 2},
                         {.name = "layers.0.v_proj", .layer = 0, .target = "v_proj", .d_out = 1, .d_in = 4}}};
}

}  // namespace hetlora::test
