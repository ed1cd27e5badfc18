// Handles, error texts, files and groups: see hetlora/store/hdf5_handle.hpp.
#include "hetlora/store/hdf5_handle.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "hdf5_internal.hpp"

namespace hetlora::hdf5 {

namespace internal {

/// Before any other call of HDF5. Its own work at the end of the process closes what is still open: every file of ours
/// is flushed after each commit and closed by its owner, and after a close that failed that work crashes (seen
/// with 1.10.8).
void be_quiet() noexcept {
    static const bool once = H5dont_atexit() >= 0;
    (void)once;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string error_stack_text() {
    std::string text;
    const H5E_walk2_t collect = [](unsigned /*n*/, const H5E_error2_t* entry, void* out) -> herr_t {
        auto& joined = *static_cast<std::string*>(out);
        if (entry->desc != nullptr && *entry->desc != '\0') {
            if (!joined.empty()) joined += "; ";
            joined += entry->desc;
        }
        return 0;
    };
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, collect, &text);
    H5Eclear2(H5E_DEFAULT);
    return text.empty() ? "HDF5 gives no reason" : text;
}

void fail(Doing doing, const std::string& action, const std::string& where) {
    const std::string reason = error_stack_text();
    if (doing == Doing::reading) {
        throw input_error(
            "cannot {} - {} - HDF5 says: {} - check that the file is complete and of the expected kind "
            "(`hetlora info FILE` describes it)",
            action, where, reason);
    }
    throw environment_error("cannot {} - {} - HDF5 says: {} - check free space, quota and permissions there", action,
                            where, reason);
}

hid_t memory_type(ElementType type) {
    switch (type) {
        case ElementType::i8:
            return H5T_NATIVE_INT8;
        case ElementType::u8:
            return H5T_NATIVE_UINT8;
        case ElementType::i32:
            return H5T_NATIVE_INT32;
        case ElementType::i64:
            return H5T_NATIVE_INT64;
        case ElementType::f32:
            return H5T_NATIVE_FLOAT;
        case ElementType::f64:
            return H5T_NATIVE_DOUBLE;
        case ElementType::text:
            break;
    }
    throw bug_error("text has no single HDF5 type - hdf5::memory_type - use create_strings()");
}

hid_t file_type(ElementType type) {
    switch (type) {
        case ElementType::i8:
            return H5T_STD_I8LE;
        case ElementType::u8:
            return H5T_STD_U8LE;
        case ElementType::i32:
            return H5T_STD_I32LE;
        case ElementType::i64:
            return H5T_STD_I64LE;
        case ElementType::f32:
            return H5T_IEEE_F32LE;
        case ElementType::f64:
            return H5T_IEEE_F64LE;
        case ElementType::text:
            break;
    }
    throw bug_error("text has no single HDF5 type - hdf5::file_type - use create_strings()");
}

Handle fixed_text_type(std::size_t bytes) {
    Handle type(check(H5Tcopy(H5T_C_S1), Doing::writing, "make a string type", "memory"), close_type);
    check(H5Tset_size(type.id(), std::max<std::size_t>(bytes, 1)), Doing::writing, "make a string type", "memory");
    check(H5Tset_cset(type.id(), H5T_CSET_UTF8), Doing::writing, "make a string type", "memory");
    check(H5Tset_strpad(type.id(), H5T_STR_NULLPAD), Doing::writing, "make a string type", "memory");
    return type;
}

std::string trim_padding(const char* data, std::size_t bytes) {
    return {data, static_cast<std::size_t>(std::find(data, data + bytes, '\0') - data)};
}

}  // namespace internal

using namespace internal;

std::string library_version() {
    unsigned major = 0;
    unsigned minor = 0;
    unsigned release = 0;
    H5get_libversion(&major, &minor, &release);
    return fmt::format("{}.{}.{}", major, minor, release);
}

Handle::Handle(Handle&& other) noexcept
    : id_(std::exchange(other.id_, -1)), closer_(std::exchange(other.closer_, nullptr)) {}

Handle& Handle::operator=(Handle&& other) noexcept {
    if (this != &other) {
        close();
        id_ = std::exchange(other.id_, -1);
        closer_ = std::exchange(other.closer_, nullptr);
    }
    return *this;
}

Handle::~Handle() { close(); }

bool Handle::close() noexcept {
    if (id_ < 0) return true;
    const std::int64_t id = std::exchange(id_, -1);
    return closer_ == nullptr || closer_(id) >= 0;
}

std::string Group::child(const std::string& name) const {
    return where().find(":/") == std::string::npos ? where() + ":/" + name : where() + "/" + name;
}

bool Group::has(const std::string& name) const {
    const htri_t link = H5Lexists(id(), name.c_str(), H5P_DEFAULT);
    return check(link, Doing::reading, fmt::format("look for '{}'", name), where()) > 0;
}

std::vector<std::string> Group::names() const {
    std::vector<std::string> names;
    hsize_t position = 0;
    const H5L_iterate_t collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
        static_cast<std::vector<std::string>*>(out)->emplace_back(name);
        return 0;
    };
    if (H5Literate(id(), H5_INDEX_CRT_ORDER, H5_ITER_INC, &position, collect, &names) >= 0) return names;
    H5Eclear2(H5E_DEFAULT);  // the writer of this file did not keep the order
    names.clear();
    position = 0;
    check(H5Literate(id(), H5_INDEX_NAME, H5_ITER_INC, &position, collect, &names), Doing::reading, "list a group",
          where());
    return names;
}

/// Attributes in the object's own header, however many: the heap that HDF5 moves more than eight of them to does not
/// take replaced ones well (a rare failure to close files of many resumes, with 1.10.8).
static void keep_attributes_compact(hid_t plist, const std::string& where) {
    check(H5Pset_attr_phase_change(plist, 1000, 0), Doing::writing, "prepare attributes", where);
}

Group Group::create_group(const std::string& name) {
    const std::string action = fmt::format("create group '{}'", name);
    const Handle plist(check(H5Pcreate(H5P_GROUP_CREATE), Doing::writing, action, where()), close_plist);
    // Readers then list columns in the order in which they were made, as they do for netCDF's own files.
    const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    check(H5Pset_link_creation_order(plist.id(), order), Doing::writing, action, where());
    check(H5Pset_attr_creation_order(plist.id(), order), Doing::writing, action, where());
    keep_attributes_compact(plist.id(), where());
    const hid_t group = H5Gcreate2(id(), name.c_str(), H5P_DEFAULT, plist.id(), H5P_DEFAULT);
    return {Handle(check(group, Doing::writing, action, where()), close_group), child(name)};
}

Group Group::open_group(const std::string& name) const {
    if (!has(name)) {
        throw input_error("no group '{}' - {} - the file is of another kind or version, or damaged", name, where());
    }
    const hid_t group = H5Gopen2(id(), name.c_str(), H5P_DEFAULT);
    return {Handle(check(group, Doing::reading, fmt::format("open group '{}'", name), where()), close_group),
            child(name)};
}

Dataset Group::open_dataset(const std::string& name) const {
    // H5Lexists wants every step of a path to exist: "a/b" is checked as "a", then "a/b".
    for (std::size_t slash = name.find('/', 1); slash != std::string::npos; slash = name.find('/', slash + 1)) {
        if (!has(name.substr(0, slash))) {
            throw input_error("no group '{}' - {} - the file is of another kind or version, or damaged",
                              name.substr(0, slash), where());
        }
    }
    if (!has(name)) {
        throw input_error("no data set '{}' - {} - the file is of another kind or version, or damaged", name, where());
    }
    const hid_t data = H5Dopen2(id(), name.c_str(), H5P_DEFAULT);
    return {Handle(check(data, Doing::reading, fmt::format("open data set '{}'", name), where()), close_dataset),
            child(name)};
}

namespace {

Handle file_access(const std::string& where) {
    Handle plist(check(H5Pcreate(H5P_FILE_ACCESS), Doing::writing, "prepare a file", where), close_plist);
    // See the note at class File; HDF5_USE_FILE_LOCKING in the environment still wins.
    check(H5Pset_file_locking(plist.id(), false, true), Doing::writing, "switch off file locks", where);
    // A file that outlives one forgotten handle would stay open behind our back: make closing mean closing.
    check(H5Pset_fclose_degree(plist.id(), H5F_CLOSE_STRONG), Doing::writing, "prepare a file", where);
    return plist;
}

hid_t open_file(const std::filesystem::path& path, unsigned flags) {
    be_quiet();
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) {
        throw input_error(
            "cannot open '{}' - no such file - check the path (relative paths start at the working directory)",
            path.string());
    }
    if (std::filesystem::is_directory(status)) {
        throw input_error("cannot open '{}' - it is a folder, an HDF5 file is wanted - name the file in it",
                          path.string());
    }
    const Handle access = file_access(path.string());
    const hid_t file = H5Fopen(path.c_str(), flags, access.id());
    if (file < 0) {
        H5Eclear2(H5E_DEFAULT);
        if (H5Fis_hdf5(path.c_str()) == 0) {
            throw input_error("'{}' is not an HDF5 file (or an empty or cut one) - check the path, or prepare it again",
                              path.string());
        }
        H5Eclear2(H5E_DEFAULT);
        const hid_t again = H5Fopen(path.c_str(), flags, access.id());  // for the reason, which H5Fis_hdf5 cleared
        return check(again, Doing::reading, "open the file", path.string());
    }
    return file;
}

}  // namespace

File::File(Handle handle, std::filesystem::path path)
    : Group(std::move(handle), path.string()), path_(std::move(path)) {}

File File::create(const std::filesystem::path& path) {
    be_quiet();
    if (std::filesystem::exists(std::filesystem::symlink_status(path))) {
        throw environment_error("will not overwrite '{}' - it exists - remove it, or choose another output folder",
                                path.string());
    }
    const Handle access = file_access(path.string());
    const Handle plist(check(H5Pcreate(H5P_FILE_CREATE), Doing::writing, "create the file", path.string()),
                       close_plist);
    const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    check(H5Pset_link_creation_order(plist.id(), order), Doing::writing, "create the file", path.string());
    check(H5Pset_attr_creation_order(plist.id(), order), Doing::writing, "create the file", path.string());
    keep_attributes_compact(plist.id(), path.string());
    // Index nodes of 16 chunks instead of 64: a run's log has many small columns, each with a node of its own.
    check(H5Pset_istore_k(plist.id(), 8), Doing::writing, "create the file", path.string());
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_EXCL, plist.id(), access.id());
    return {Handle(check(file, Doing::writing, "create the file", path.string()), close_file), path};
}

File File::open_read(const std::filesystem::path& path) {
    return {Handle(open_file(path, H5F_ACC_RDONLY), close_file), path};
}

File File::open_write(const std::filesystem::path& path) {
    return {Handle(open_file(path, H5F_ACC_RDWR), close_file), path};
}

void File::flush() { check(H5Fflush(id(), H5F_SCOPE_LOCAL), Doing::writing, "write out the file", path_.string()); }

void File::close() {
    if (!*this) return;
    if (!close_object()) fail(Doing::writing, "write out and close the file", path_.string());
}

}  // namespace hetlora::hdf5
