// What root tells people about a round that went on, but not as they may think.
#pragma once

#include <cstdint>

#include "hetlora/base/terminal.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/fed/round.hpp"

namespace hetlora {

class RunWarnings {
public:
    explicit RunWarnings(Terminal& terminal) : terminal_(terminal) {}

    /// Once: a signal's lead time is shorter than a step and a checkpoint together take.
    void about_lead_time(const CheckpointSettings& checkpoint, double longest_wait_s, double longest_checkpoint_s);
    /// Clients whose training diverged.
    void about_dropped(const RoundOutcome& outcome);
    /// Once: slots that nobody covers become zero in both factors, and their gradients are then zero for ever.
    void about_slots(const RoundOutcome& outcome, std::int64_t rank_max);

private:
    Terminal& terminal_;
    bool told_of_lead_time_ = false;
    bool told_of_slots_ = false;
};

}  // namespace hetlora
