#include "hetlora/base/sha256.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

void check(int code) {
    if (code != 1) throw environment_error("OpenSSL cannot compute SHA-256 on this system; mend its installation");
}

}  // namespace

struct Sha256::Context {
    struct Free {
        void operator()(EVP_MD_CTX* digest) const { EVP_MD_CTX_free(digest); }
    };
    std::unique_ptr<EVP_MD_CTX, Free> digest{EVP_MD_CTX_new()};
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
    check(context_->digest != nullptr ? 1 : 0);
    check(EVP_DigestInit_ex(context_->digest.get(), EVP_sha256(), nullptr));
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
    check(EVP_DigestUpdate(context_->digest.get(), bytes.data(), bytes.size()));
}

void Sha256::update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }

std::string Sha256::hex() const {
    const Context last;  // finishing ends a digest: a copy of it is finished
    check(last.digest != nullptr ? 1 : 0);
    check(EVP_MD_CTX_copy_ex(last.digest.get(), context_->digest.get()));
    std::array<unsigned char, 32> bytes{};
    check(EVP_DigestFinal_ex(last.digest.get(), bytes.data(), nullptr));
    std::string text;
    for (const auto byte : bytes) text += fmt::format("{:02x}", byte);
    return text;
}

std::string sha256_hex(std::string_view text) {
    Sha256 digest;
    digest.update(text);
    return digest.hex();
}

std::string sha256_file(const std::filesystem::path& path) {
    const auto failed = [&path](const char* what) {
        return input_error("cannot {} {}: {}; check the path and its permissions", what, path.string(),
                           std::strerror(errno));
    };
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
    if (!file) throw failed("open");
    Sha256 digest;
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    while (true) {
        const auto n_read = std::fread(buffer.data(), 1, buffer.size(), file.get());
        digest.update(std::span<const std::byte>(buffer).first(n_read));
        if (n_read < buffer.size()) break;
    }
    if (std::ferror(file.get()) != 0) throw failed("read");
    return digest.hex();
}

}  // namespace hetlora
