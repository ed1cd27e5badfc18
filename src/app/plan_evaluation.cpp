#include "plan_evaluation.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <vector>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/timer.hpp"

namespace hetlora {
namespace {

/// Time for measuring each kind of work.
constexpr double work_budget_s = 4.0;

/// Work on items of different sizes, any of which can be done without the others.
struct SizedWork {
    std::vector<double> rows;                               ///< of each item
    std::function<void(std::span<const std::size_t>)> run;  ///< collective
};

double sum_of(std::span<const double> rows) { return std::accumulate(rows.begin(), rows.end(), 0.0); }

/// Seconds of all items, from some of them.
double seconds_of_all(Transport& transport, const SizedWork& work, std::int64_t rows_of_a_batch) {
    const std::size_t n = work.rows.size();
    if (n == 0) return 0.0;
    const double all_rows = sum_of(work.rows);
    const auto timed = [&](std::size_t count) {
        std::vector<std::size_t> some;  // spread over the set: items differ in length
        double rows = 0.0;
        for (std::size_t i = 0; i < count; ++i) {
            some.push_back(i * n / count);
            rows += work.rows[some.back()];
        }
        transport.barrier();
        const Stopwatch watch;
        work.run(some);
        std::array<double, 1> seconds{watch.seconds() * all_rows / rows};
        transport.broadcast_values(seconds);
        return seconds[0];
    };
    // A batch for each MPI rank first: that is warm-up and estimate in one.
    const double items =
        static_cast<double>(rows_of_a_batch * transport.mpi_size()) * static_cast<double>(n) / all_rows;
    const std::size_t few = std::clamp<std::size_t>(static_cast<std::size_t>(items), 1, n);
    const double share = std::min(1.0, work_budget_s / std::max(1e-6, timed(few)));
    return timed(std::clamp<std::size_t>(static_cast<std::size_t>(share * static_cast<double>(n)), few, n));
}

SizedWork window_work(Transport& transport, Experiment& experiment, std::span<const double> global,
                      const std::vector<WindowRef>& windows) {
    SizedWork work;
    for (const WindowRef& window : windows) work.rows.push_back(static_cast<double>(window.rows));
    work.run = [&, global](std::span<const std::size_t> some) {
        std::vector<WindowRef> part;
        for (const std::size_t i : some) part.push_back(windows[i]);
        (void)evaluate_global(transport, experiment, global, part);
    };
    return work;
}

double rows_of(const ChoiceQuestion& question) {
    double rows = 0.0;
    for (const auto& answer : question.answers) rows += static_cast<double>(question.prompt.size() + answer.size() - 1);
    return rows;
}

SizedWork choice_work(Transport& transport, Experiment& experiment, std::span<const double> global,
                      const std::vector<ChoiceQuestion>& questions) {
    SizedWork work;
    for (const ChoiceQuestion& question : questions) work.rows.push_back(rows_of(question));
    work.run = [&, global](std::span<const std::size_t> some) {
        std::vector<ChoiceQuestion> part;
        for (const std::size_t i : some) part.push_back(questions[i]);
        (void)chosen_answers(transport, experiment, global, part);
    };
    return work;
}

SizedWork reply_work(Transport& transport, Experiment& experiment, std::span<const double> global,
                     const std::vector<TextQuestion>& questions) {
    SizedWork work;
    const auto new_rows = static_cast<double>(experiment.settings.evaluation.text_tokens);
    for (const TextQuestion& question : questions)
        work.rows.push_back(static_cast<double>(question.prompt.size()) + new_rows);
    work.run = [&, global](std::span<const std::size_t> some) {
        TaskQuestions part;
        for (const std::size_t i : some) part.texts.push_back(questions[i]);
        (void)measure_tasks(transport, experiment, global, part);
    };
    return work;
}

}  // namespace

EvaluationCost measure_evaluation_cost(Transport& transport, Experiment& experiment, std::span<const double> global) {
    const std::int64_t batch = experiment.settings.compute.pack_tokens;
    const auto with_test = [&](const SizedWork& work, double test_rows) {
        const double seconds = seconds_of_all(transport, work, batch);
        return EvaluationCost{.seconds = seconds,
                              .test_seconds = work.rows.empty() ? 0.0 : seconds * test_rows / sum_of(work.rows)};
    };
    const TaskQuestions& asked = experiment.questions;
    const TaskQuestions& on_test = experiment.test_questions;
    EvaluationCost total;
    // The loss first, as in a run: then memory is taken in the same order.
    for (const auto& [work, test_rows] :
         {std::pair{window_work(transport, experiment, global, experiment.evaluation_windows),
                    sum_of(window_work(transport, experiment, global, experiment.test_windows).rows)},
          {window_work(transport, experiment, global, asked.labelled),
           sum_of(window_work(transport, experiment, global, on_test.labelled).rows)},
          {choice_work(transport, experiment, global, asked.choices),
           sum_of(choice_work(transport, experiment, global, on_test.choices).rows)},
          {reply_work(transport, experiment, global, asked.texts),
           sum_of(reply_work(transport, experiment, global, on_test.texts).rows)}}) {
        const EvaluationCost cost = with_test(work, test_rows);
        total.seconds += cost.seconds;
        total.test_seconds += cost.test_seconds;
    }
    return total;
}

}  // namespace hetlora
