// The rows of /clients, one at a time: for a million clients a table of them would be most of root's memory.
#pragma once

#include <cstdint>
#include <functional>

#include "hetlora/data/corpus.hpp"
#include "hetlora/fed/population.hpp"
#include "hetlora/store/run_log_rows.hpp"

namespace hetlora {

/// Gives the row of a client. Holds 24 bytes a client and a block of names; rising order is quick.
/// @pre corpus and population outlive the function
[[nodiscard]] std::function<ClientRow(std::int64_t)> client_table(const Corpus& corpus, const Population& population);

}  // namespace hetlora
