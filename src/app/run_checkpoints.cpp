#include "hetlora/app/run_checkpoints.hpp"

#include <algorithm>
#include <utility>

#include "hetlora/base/timer.hpp"

namespace hetlora {

void RunCheckpoints::after_round(CarriedState state, bool asked) {
    const auto& settings = experiment_.settings.checkpoint;
    unsaved_ = std::move(state);
    if (asked || (settings.every > 0 && unsaved_->round % settings.every == 0)) flush();
}

void RunCheckpoints::flush() {
    if (unsaved_) write(*unsaved_, experiment_.settings.checkpoint.keep);
}

void RunCheckpoints::finish(const CarriedState& last) {
    if (unsaved_ || checkpoint_rounds(folder_).size() > 1) write(last, 1);
}

double RunCheckpoints::take_seconds() { return std::exchange(seconds_, 0.0); }

void RunCheckpoints::write(const CarriedState& state, std::int64_t keep) {
    const Stopwatch watch;
    write_checkpoint(folder_, make_checkpoint(experiment_, state), keep);
    const double seconds = watch.seconds();
    longest_s_ = std::max(longest_s_, seconds);
    seconds_ += seconds;
    saved_round_ = state.round;
    unsaved_.reset();
}

}  // namespace hetlora
