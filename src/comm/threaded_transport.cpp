#include "hetlora/comm/threaded_transport.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

namespace hetlora {

namespace {

/// What a thread shows to the others during one collective.
struct Post {
    const void* data = nullptr;
    std::size_t size = 0;
};

/// Shared by all threads: one post per thread and a barrier that can be broken.
class Room {
public:
    explicit Room(int n) : posts(static_cast<std::size_t>(n)), n_(n) {}

    void wait() {
        std::unique_lock lock(mutex_);
        fail_if_broken();
        const auto turn = turn_;
        if (++waiting_ == n_) {
            waiting_ = 0;
            ++turn_;
            all_here_.notify_all();
            return;
        }
        all_here_.wait(lock, [&] { return turn_ != turn || broken_; });
        if (turn_ == turn) fail_if_broken();
    }
    void break_up() {
        const std::scoped_lock lock(mutex_);
        broken_ = true;
        all_here_.notify_all();
    }

    std::vector<Post> posts;

private:
    void fail_if_broken() const {
        if (broken_) throw TransportError("another thread of this transport left with an error");
    }

    std::mutex mutex_;
    std::condition_variable all_here_;
    int n_;
    int waiting_ = 0;
    std::uint64_t turn_ = 0;
    bool broken_ = false;
};

class ThreadedTransport final : public Transport {
public:
    ThreadedTransport(TransportPlace place, Room& room) : Transport(std::move(place)), room_(room) {}
    [[noreturn]] void abort(int exit_code) override { std::_Exit(exit_code); }

private:
    void post(const void* data, std::size_t size) {
        room_.posts[static_cast<std::size_t>(mpi_rank())] = {data, size};
        room_.wait();
    }
    template <typename T>
    [[nodiscard]] std::span<const T> posted(std::size_t thread) const {
        const auto& post = room_.posts[thread];
        return {static_cast<const T*>(post.data), post.size};
    }
    template <typename T, typename Combine>
    void combine(std::span<const T> values, std::span<T> out, bool everybody, Combine combine_two) {
        post(values.data(), values.size());
        if (everybody || is_root()) {
            std::vector<T> result(posted<T>(0).begin(), posted<T>(0).end());
            for (std::size_t thread = 1; thread < room_.posts.size(); ++thread) {
                std::ranges::transform(result, posted<T>(thread), result.begin(), combine_two);
            }
            room_.wait();  // `values` and `out` may be the same memory: nobody writes before everybody has read
            std::ranges::copy(result, out.begin());
        } else {
            room_.wait();
        }
        room_.wait();
    }

    void do_broadcast(std::span<std::byte> bytes, int root) override {
        post(bytes.data(), bytes.size());
        if (mpi_rank() != root) std::ranges::copy(posted<std::byte>(static_cast<std::size_t>(root)), bytes.begin());
        room_.wait();
    }
    std::vector<std::vector<std::byte>> do_gather(std::span<const std::byte> bytes) override {
        post(bytes.data(), bytes.size());
        std::vector<std::vector<std::byte>> all;
        for (std::size_t thread = 0; is_root() && thread < room_.posts.size(); ++thread) {
            const auto part = posted<std::byte>(thread);
            all.emplace_back(part.begin(), part.end());
        }
        room_.wait();
        return all;
    }
    void do_reduce_sum(std::span<const std::int64_t> values, std::span<std::int64_t> out) override {
        combine(values, out, false, std::plus<>{});
    }
    void do_reduce_sum(std::span<const double> values, std::span<double> out) override {
        combine(values, out, false, std::plus<>{});
    }
    void do_all_sum(std::span<std::int64_t> values) override {
        combine(std::span<const std::int64_t>(values), values, true, std::plus<>{});
    }
    void do_all_max(std::span<std::int64_t> values) override {
        combine(std::span<const std::int64_t>(values), values, true,
                [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
    }
    void do_barrier() override { room_.wait(); }

    Room& room_;
};

bool is_transport_error(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const TransportError&) {
        return true;
    } catch (...) {
        return false;
    }
}

}  // namespace

void run_threaded(int n_threads, const std::function<void(Transport&)>& body) {
    if (n_threads < 1) throw bug_error("run_threaded: {} threads", n_threads);
    Room room(n_threads);
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(n_threads));
    {
        std::vector<std::jthread> threads;
        for (int thread = 0; thread < n_threads; ++thread) {
            threads.emplace_back([&, thread] {
                ThreadedTransport transport(
                    {.mpi_rank = thread,
                     .mpi_size = n_threads,
                     .node_mpi_rank = thread,
                     .node_mpi_size = n_threads,
                     .hosts = std::vector<std::string>(static_cast<std::size_t>(n_threads), host_name())},
                    room);
                try {
                    body(transport);
                } catch (...) {
                    failures[static_cast<std::size_t>(thread)] = std::current_exception();
                    room.break_up();
                }
            });
        }
    }
    for (const bool transport_errors : {false, true}) {
        for (const auto& failure : failures) {
            if (failure && is_transport_error(failure) == transport_errors) std::rethrow_exception(failure);
        }
    }
}

}  // namespace hetlora
