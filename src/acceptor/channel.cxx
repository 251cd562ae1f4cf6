// SPDX-License-Identifier: LGPL-2.1-or-later

#include "channel.hxx"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace ooodd
{

namespace
{

// What a message of the broker with a client begins with: the version of the protocol.
constexpr std::string_view handOver = "ooodd 1 session";
// No message of the protocol is longer but the answer to "opening".
constexpr std::size_t messageSize = 64;
constexpr std::size_t openingSize = 4096;
constexpr std::size_t bufferSize = 64 * 1024;
// For how long nothing is accepted when there is no descriptor for it, in milliseconds.
constexpr int exhaustedPause = 100;

[[noreturn]] void fail(const char* what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

std::int64_t now()
{
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
    return std::int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
}

// Calls again after a signal.
template <typename Call> auto retry(Call call)
{
    auto result = call();
    while (result < 0 && errno == EINTR)
    {
        result = call();
    }
    return result;
}

bool wouldBlock()
{
    return errno == EAGAIN || errno == EWOULDBLOCK;
}

// The flag is shared with the broker, which sets it, and reads nothing from the client any more.
void setBlocking(int number)
{
    fcntl(number, F_SETFL, fcntl(number, F_GETFL) & ~O_NONBLOCK);
}

bool isStream(int number)
{
    int type = 0;
    socklen_t size = sizeof type;
    return getsockopt(number, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

// Returns what came with a message.
std::vector<Descriptor> descriptors(const msghdr& message)
{
    std::vector<Descriptor> found;
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
    {
        const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t index = 0; index < count; ++index)
        {
            int number = -1;
            std::memcpy(&number, CMSG_DATA(header) + index * sizeof number, sizeof number);
            found.emplace_back(number);
        }
    }
    return found;
}

// Tells who waits for the office at another socket, if anybody does.
void announce(const std::string& path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const Descriptor from(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (from && path.size() < sizeof address.sun_path)
    {
        std::copy(path.begin(), path.end(), address.sun_path);
        const auto* const to = reinterpret_cast<const sockaddr*>(&address);
        retry([&] { return sendto(from.get(), "ready", sizeof "ready" - 1, MSG_NOSIGNAL, to, sizeof address); });
    }
}

bool isEmpty(int number)
{
    std::uint8_t byte = 0;
    return retry([&] { return recv(number, &byte, 1, MSG_PEEK | MSG_DONTWAIT); }) < 0 && wouldBlock();
}

}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept
{
    if (this != &other)
    {
        reset();
        number = other.release();
    }
    return *this;
}

int Descriptor::release()
{
    return std::exchange(number, -1);
}

void Descriptor::reset()
{
    if (number >= 0)
    {
        ::close(number);
        number = -1;
    }
}

Session::Session(Descriptor client, Descriptor control)
    : client(std::move(client))
    , control(std::move(control))
    , buffer(bufferSize)
{
    setBlocking(this->client.get());
    moved();
    tell("began");
}

Session::~Session()
{
    release();
}

std::size_t Session::read(std::uint8_t* data, std::size_t size)
{
    std::size_t got = 0;
    while (got < size)
    {
        std::size_t more = takeBuffered(data + got, size - got);
        if (more == 0)
        {
            more = receive(data + got, size - got);
        }
        if (more == 0)
        {
            break;
        }
        got += more;
    }
    return got;
}

std::size_t Session::takeBuffered(std::uint8_t* data, std::size_t size)
{
    const std::scoped_lock guard(taking);
    const std::size_t taken = closed ? 0 : std::min(size, filled - next);
    std::copy_n(buffer.begin() + static_cast<std::ptrdiff_t>(next), taken, data);
    next += taken;
    count(data, taken);
    return taken;
}

// Receives into `data` what there is, and what follows into the buffer, which is empty. Returns how much is in `data`; 0 at
// the end.
std::size_t Session::receive(std::uint8_t* data, std::size_t size)
{
    while (!closed)
    {
        std::array<iovec, 2> parts{{{data, size}, {buffer.data(), buffer.size()}}};
        msghdr message{};
        message.msg_iov = parts.data();
        message.msg_iovlen = parts.size();
        const ssize_t got = retry([&] { return recvmsg(client.get(), &message, 0); });
        if (got > 0)
        {
            return take(data, size, static_cast<std::size_t>(got));
        }
        if (got == 0 || errno == ECONNRESET)
        {
            clientEnded = !closed;
            return 0;
        }
        if (!wouldBlock())
        {
            fail("the client's connection");
        }
        setBlocking(client.get());
    }
    return 0;
}

// Takes so many bytes as have been received, `size` of them into `data`. Returns how many are there.
std::size_t Session::take(std::uint8_t* data, std::size_t size, std::size_t all)
{
    const std::scoped_lock guard(taking);
    if (closed)
    {
        return 0;
    }
    moved();
    const std::size_t mine = std::min(all, size);
    next = 0;
    filled = all - mine;
    if (opening.size() < openingSize)
    {
        opening.append(reinterpret_cast<const char*>(data), std::min(mine, openingSize - opening.size()));
        opening.append(reinterpret_cast<const char*>(buffer.data()), std::min(filled, openingSize - opening.size()));
    }
    count(data, mine);
    return mine;
}

void Session::count(const std::uint8_t* data, std::size_t size)
{
    counts.received(data, size);
    officeCalls.sent(data, size);
    bytesRead += size;
}

bool Session::answer()
{
    std::array<char, messageSize> text{};
    const ssize_t size = retry([&] { return recv(control.get(), text.data(), text.size(), MSG_DONTWAIT); });
    if (size <= 0)
    {
        // A broker that has gone has left the session to the next one, which has this connection too. If nobody has it,
        // the session goes on, and nobody is told.
        return size < 0 && wouldBlock();
    }
    const std::scoped_lock guard(taking);
    const std::string_view asked(text.data(), static_cast<std::size_t>(size));
    constexpr std::string_view end = "end ";
    if (asked == "calls")
    {
        tell(calls());
    }
    else if (asked == "opening")
    {
        tell("opening " + opening);
    }
    else if (asked.substr(0, end.size()) == end)
    {
        this->end(asked.substr(end.size()));
    }
    else
    {
        tell("unknown");
    }
    return true;
}

void Session::end(std::string_view total)
{
    const bool still = isStillAt(total);
    tell(still ? "ended" : "busy");
    if (still)
    {
        close();
    }
}

std::string Session::calls() const
{
    return "calls " + std::to_string(counts.total()) + ' ' + std::to_string(counts.underWay()) + ' '
        + std::to_string(now() - lastMoved) + (counts.isAmidBlock() ? " 1 " : " 0 ")
        + std::to_string(officeCalls.underWay());
}

// Whether the client has made so many calls and has all replies, and nothing more has come from it.
bool Session::isStillAt(std::string_view total) const
{
    std::uint64_t wanted = 0;
    const auto [rest, error] = std::from_chars(total.data(), total.data() + total.size(), wanted);
    return error == std::errc{} && rest == total.data() + total.size() && wanted == counts.total()
        && counts.underWay() == 0 && !writing && !counts.isAmidBlock() && next == filled && isEmpty(client.get());
}

void Session::write(const std::uint8_t* data, std::size_t size)
{
    // A client that has its reply may close: so the reply is counted first.
    writing = true;
    counts.sent(data, size);
    officeCalls.received(data, size);
    bytesWritten += size;
    while (size > 0)
    {
        const ssize_t sent = retry([&] { return send(client.get(), data, size, MSG_NOSIGNAL); });
        if (sent >= 0)
        {
            moved();
            data += sent;
            size -= static_cast<std::size_t>(sent);
        }
        else if (wouldBlock())
        {
            setBlocking(client.get());
        }
        else
        {
            fail("the client's connection");
        }
    }
    writing = false;
}

void Session::close() noexcept
{
    if (!closed.exchange(true))
    {
        // Who writes may be the first to see that the client has gone.
        pollfd source{client.get(), POLLRDHUP, 0};
        if (poll(&source, 1, 0) > 0)
        {
            clientEnded = true;
        }
        shutdown(client.get(), SHUT_RDWR);
        tell(std::string("closed ") + (clientEnded ? "client " : "office ") + std::to_string(counts.underWay()) + ' '
            + std::to_string(bytesRead) + ' ' + std::to_string(bytesWritten));
    }
}

void Session::release() noexcept
{
    close();
    shutdown(control.get(), SHUT_RDWR);
}

// Never waits: a broker that does not listen is not told.
void Session::tell(const std::string& text) const noexcept
{
    retry([&] { return send(control.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT); });
}

void Session::moved()
{
    lastMoved = now();
}

Listener::Listener(const std::string& path)
    : path(path)
    , socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))
    , stopped(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
    {
        errno = ENAMETOOLONG;
        fail(path.c_str());
    }
    std::copy(path.begin(), path.end(), address.sun_path);
    if (!socket || !stopped)
    {
        fail("socket");
    }
    unlink(path.c_str());
    // The broker is another user, whatever the office's umask is. The directory keeps everybody else away.
    if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0
        || chmod(path.c_str(), S_IRWXU | S_IRWXG | S_IRWXO) < 0 || listen(socket.get(), SOMAXCONN) < 0)
    {
        fail(path.c_str());
    }
    announce(path.substr(0, path.rfind('/') + 1) + "ready");
}

Listener::~Listener() = default;

std::shared_ptr<Session> Listener::accept()
{
    std::vector<pollfd> sources;
    while (true)
    {
        sources.assign({{stopped.get(), POLLIN, 0}, {socket.get(), POLLIN, 0}});
        for (const Descriptor& control : silent)
        {
            sources.push_back({control.get(), POLLIN, 0});
        }
        for (const std::shared_ptr<Session>& session : sessions)
        {
            sources.push_back({session->broker(), POLLIN, 0});
        }
        retry([&] { return poll(sources.data(), sources.size(), -1); });
        if (sources[0].revents != 0)
        {
            return nullptr;
        }
        const std::size_t first = 2 + silent.size();
        answer(sources.data() + first);
        for (std::size_t number = 2; number < first; ++number)
        {
            if (sources[number].revents != 0)
            {
                const auto place = silent.begin() + static_cast<std::ptrdiff_t>(number - 2);
                Descriptor control = std::move(*place);
                silent.erase(place);
                if (Descriptor client = receive(control.get()); client)
                {
                    return sessions.emplace_back(std::make_shared<Session>(std::move(client), std::move(control)));
                }
                break; // the others are at other places now
            }
        }
        if (sources[1].revents != 0)
        {
            admit();
        }
    }
}

// Answers those who have asked something. `sources` are the control connections of the sessions, as they were polled.
void Listener::answer(const pollfd* sources)
{
    for (std::size_t number = sessions.size(); number-- > 0;)
    {
        if (sources[number].revents != 0 && !sessions[number]->answer())
        {
            sessions.erase(sessions.begin() + static_cast<std::ptrdiff_t>(number));
        }
    }
}

// Accepts a connection, which may stay silent.
void Listener::admit()
{
    Descriptor control(accept4(socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!control)
    {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        {
            pollfd stop{stopped.get(), POLLIN, 0};
            poll(&stop, 1, exhaustedPause);
        }
        return;
    }
    if (silent.size() == mostSilent)
    {
        silent.erase(silent.begin());
    }
    silent.push_back(std::move(control));
}

// Returns the client's socket that a peer has handed over, or none. What it has sent beyond that is closed.
Descriptor Listener::receive(int control)
{
    std::array<char, messageSize> text{};
    iovec part{text.data(), text.size()};
    // Room for one descriptor, or two on a 64-bit machine. The kernel closes those for which there is none, and says so.
    alignas(cmsghdr) std::array<std::uint8_t, CMSG_SPACE(sizeof(int))> ancillary{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    const ssize_t size = retry([&] { return recvmsg(control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC); });
    if (size < 0)
    {
        return Descriptor();
    }
    std::vector<Descriptor> got = descriptors(message);
    const std::string_view said(text.data(), static_cast<std::size_t>(size));
    const bool whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && said == handOver && got.size() == 1;
    return whole && isStream(got.front().get()) ? std::move(got.front()) : Descriptor();
}

void Listener::stop() noexcept
{
    const std::uint64_t one = 1;
    retry([&] { return ::write(stopped.get(), &one, sizeof one); });
}

}
