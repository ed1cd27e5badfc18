// The clients' side of a round: what each of a pack receives, trains and sends.
//
//   distribute   the client's slots of the global adapter (or a fresh adapter), its own B where it keeps one
//   train        one batched pass for the whole pack; before it, one scoring pass for slot_select = scored
//   upload       prune, weigh, add to the sums of this mpi_rank or keep the factors for the gather
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "hetlora/fed/exchange.hpp"
#include "hetlora/fed/round.hpp"

namespace hetlora {

/// What a client sent, kept until a plugin's weights of the round are known.
struct HeldUpload {
    std::int64_t cohort_index = 0;
    std::int64_t client = 0;
    std::vector<double> factors;
    std::int64_t lora_rank = 0;
    std::vector<std::int32_t> slots;  ///< as ClientUpload::slots
    std::vector<double> received;     ///< aggregate = deltas only
    std::int64_t received_lora_rank = 0;
};

/// What the clients of one mpi_rank leave behind.
struct ClientWork {
    std::vector<ClientReport> reports;
    std::vector<TracedClient> traced;     ///< with output.trace
    std::vector<GatheredUpload> uploads;  ///< where strategy.gathers_uploads()
    std::optional<DenseSum> heads;        ///< model.task = classification
    std::optional<DenseSum> base;         ///< of the changes of all weights, where strategy.trains_base()
    std::vector<HeldUpload> held;         ///< where strategy.own.weight and strategy.sums_uploads()
};

/// What one client gets and trains in a round.
struct Distribution {
    std::int64_t lora_rank = 0;               ///< slots that the client may train
    std::vector<double> received;             ///< canonical form at received_lora_rank
    std::int64_t received_lora_rank = 0;      ///< the client's, or rank_max for receive = all
    std::vector<std::int64_t> slots;          ///< its places in the global adapter, ascending; empty: the leading ones
    std::vector<std::uint8_t> trained_slots;  ///< as ClientTask::trained_slots
    double scale = 1.0;                       ///< s in W0 + s B A
};
/// @param global the global adapter at rank_max, the same on every mpi_rank
[[nodiscard]] Distribution distribute(const RoundContext& context, std::int64_t round, const PlannedClient& client,
                                      std::span<const double> global);

/// Puts a client's own B in place of an adapter's (shared_factors = a); one that never took part keeps what is there.
/// @param adapter canonical form at the client's lora_rank
void put_private_factors(const AdapterLayout& layout, const Population& population, std::int64_t client,
                         PrivateFactors& private_factors, std::span<double> adapter);

/// What root learns of a participation from its steps alone; bytes, weights and samples are the caller's to fill in.
[[nodiscard]] ClientReport make_report(const ClientOutcome& outcome, const PlannedClient& planned,
                                       std::int64_t cohort_index, int mpi_rank);

/// Trains one pack from the server's adapter (and head), the same on every mpi_rank, and adds what its clients send to
/// the sums of this mpi_rank and to `work`.
void train_one_pack(const RoundContext& context, const RoundPlan& plan, const Pack& pack, const ServerState& server,
                    ClientWork& work);

/// Adds the held uploads to the sums of this mpi_rank.
/// @param weights of the whole cohort
/// @throws Error (training) if one of them is too large to be summed
void add_held_uploads(const RoundContext& context, std::span<const double> weights, std::span<const HeldUpload> held);

/// What all clients of a round share.
[[nodiscard]] LocalOptions local_options(const RoundContext& context, std::int64_t round);

}  // namespace hetlora
