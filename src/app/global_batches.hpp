// What every measurement of the global adapter does: batches dealt out to the mpi_ranks. Internal to src/app.
#pragma once

#include <span>
#include <string_view>

#include "hetlora/app/experiment.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/model/lora.hpp"

namespace hetlora {

/// One pass of the base with the global adapter over some batches.
struct GlobalPass {
    std::string_view doing;          ///< for the message, if an mpi_rank fails
    std::span<const double> global;  ///< canonical form at lora.rank_max, the same on every mpi_rank
    std::size_t batches = 0;
};

/// Calls work(adapter, batch) for every batch number that is this mpi_rank's; `adapter` is a group whose only client
/// is the global adapter. Collective. @throws AgreedError on every mpi_rank if one of them failed or was stopped
template <typename Work>
void for_own_batches(Transport& transport, Experiment& experiment, const GlobalPass& pass, const Work& work) {
    skip_wait_for_look();
    agree(transport, pass.doing, [&] {
        const std::int64_t rank_max = experiment.settings.lora.rank_max;
        AdapterGroup adapter(experiment.layout, 1, lora_width(rank_max), /*with_gradient=*/false,
                             experiment.engine->weights().options());
        adapter.set(0, pass.global, rank_max);
        for (std::size_t b = static_cast<std::size_t>(transport.mpi_rank()); b < pass.batches;
             b += static_cast<std::size_t>(transport.mpi_size())) {
            throw_if_stop_requested();
            work(adapter, b);
        }
    });
}

}  // namespace hetlora
