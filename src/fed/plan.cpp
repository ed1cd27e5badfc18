#include "hetlora/fed/plan.hpp"

#include <algorithm>
#include <numeric>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

namespace {

/// Slots that a client takes in a pack: adapters are padded to a multiple of 8 (model/lora.hpp).
std::int64_t width_of(std::int64_t lora_rank) { return (lora_rank + 7) / 8 * 8; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::vector<std::int64_t> sample_cohort(std::int64_t round, const Population& population, const PlanOptions& options) {
    const std::vector<std::int32_t>& eligible = population.eligible();
    const std::int64_t wanted = options.clients_per_round == 0 ? std::ssize(eligible) : options.clients_per_round;
    if (eligible.empty()) {
        throw input_error("none of the {} clients can train - lower data.min_windows or check the data's training part",
                          population.size());
    }
    if (wanted > std::ssize(eligible)) {
        throw usage_error(
            "experiment.clients_per_round = {} but only {} of {} clients can train - lower it (0 = all), or lower "
            "data.min_windows",
            wanted, eligible.size(), population.size());
    }
    struct Ticket {
        std::uint64_t hash;
        std::int64_t client;
        bool operator<(const Ticket& other) const {
            return hash != other.hash ? hash < other.hash : client < other.client;
        }
    };
    // The `wanted` smallest tickets, in a heap with the largest on top: memory for the cohort, not for everybody.
    std::vector<Ticket> tickets;
    tickets.reserve(static_cast<std::size_t>(wanted));
    for (const std::int64_t client : eligible) {
        const Ticket ticket{hash_seed(options.seed_sampling, Purpose::sampling, round, client), client};
        if (std::ssize(tickets) == wanted) {
            if (!(ticket < tickets.front())) continue;
            std::ranges::pop_heap(tickets, std::less<>{});
            tickets.pop_back();
        }
        tickets.push_back(ticket);
        std::ranges::push_heap(tickets, std::less<>{});
    }
    std::vector<std::int64_t> clients;
    clients.reserve(tickets.size());
    for (const Ticket& ticket : tickets) clients.push_back(ticket.client);
    std::ranges::sort(clients);
    return clients;
}

PlannedClient plan_client(std::int64_t client, const RegisteredClient& record, const PlanOptions& options) {
    const std::int64_t batch = std::min(options.batch_size, record.n_windows);
    return {
        .client = client,
        .lora_rank = std::min(record.lora_rank, options.lora_rank_cap),
        .n_steps = options.epochs > 0 ? options.epochs * ceil_div(record.n_windows, options.batch_size) : options.steps,
        .rows_per_step = std::max<std::int64_t>(1, ceil_div(record.n_rows, record.n_windows)) * batch,
        .pack = 0};
}

void make_packs(RoundPlan& plan, std::int64_t pack_tokens) {
    std::vector<std::size_t> order(plan.cohort.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, [&](std::size_t x, std::size_t y) {
        const auto& a = plan.cohort[x];
        const auto& b = plan.cohort[y];
        if (width_of(a.lora_rank) != width_of(b.lora_rank)) return width_of(a.lora_rank) < width_of(b.lora_rank);
        if (a.rows_per_step != b.rows_per_step) return a.rows_per_step > b.rows_per_step;
        return a.client < b.client;
    });
    for (const auto index : order) {
        auto& planned = plan.cohort[index];
        if (plan.packs.empty() || plan.packs.back().rows_per_step + planned.rows_per_step > pack_tokens) {
            plan.packs.emplace_back();  // also where a single client is larger than a pack should be
        }
        auto& pack = plan.packs.back();
        planned.pack = std::ssize(plan.packs) - 1;
        pack.members.push_back(static_cast<std::int64_t>(index));
        pack.rows_per_step += planned.rows_per_step;
        pack.max_steps = std::max(pack.max_steps, planned.n_steps);
        pack.cost += planned.n_steps * planned.rows_per_step;
    }
}

}  // namespace

PlanOptions plan_options(const Settings& settings, std::int64_t pack_tokens) {
    return {.seed_sampling = settings.experiment.seed_sampling,
            .clients_per_round = settings.experiment.clients_per_round,
            .steps = settings.local.steps,
            .epochs = settings.local.epochs,
            .batch_size = settings.local.batch_size,
            .pack_tokens = pack_tokens};
}

RoundPlan make_round_plan(std::int64_t round, const Population& population, const PlanOptions& options) {
    if (options.batch_size < 1 || options.pack_tokens < 1 || options.clients_per_round < 0 ||
        (options.steps > 0) == (options.epochs > 0)) {
        throw bug_error("round plan: clients_per_round {}, batch_size {}, pack_tokens {}, steps {}, epochs {}",
                        options.clients_per_round, options.batch_size, options.pack_tokens, options.steps,
                        options.epochs);
    }
    RoundPlan plan;
    plan.round = round;
    for (const auto client : sample_cohort(round, population, options)) {
        plan.cohort.push_back(plan_client(client, population.at(client), options));
    }
    make_packs(plan, options.pack_tokens);
    return plan;
}

std::vector<int> assign_packs(const RoundPlan& plan, int mpi_size) {
    if (mpi_size < 1) throw bug_error("assign_packs: {} mpi_ranks", mpi_size);
    std::vector<std::size_t> order(plan.packs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order,
                             [&](std::size_t x, std::size_t y) { return plan.packs[x].cost > plan.packs[y].cost; });
    std::vector<std::int64_t> work(static_cast<std::size_t>(mpi_size));
    std::vector<int> mpi_rank_of_pack(plan.packs.size());
    for (const auto pack : order) {
        const auto least = std::ranges::min_element(work);  // the first of equals
        *least += plan.packs[pack].cost;
        mpi_rank_of_pack[pack] = static_cast<int>(least - work.begin());
    }
    return mpi_rank_of_pack;
}

std::vector<std::int64_t> packs_of(const std::vector<int>& assignment, int mpi_rank) {
    std::vector<std::int64_t> packs;
    for (std::size_t pack = 0; pack < assignment.size(); ++pack) {
        if (assignment[pack] == mpi_rank) packs.push_back(static_cast<std::int64_t>(pack));
    }
    return packs;
}

}  // namespace hetlora
