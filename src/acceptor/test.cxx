// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The acceptor without UNO: what is counted, what is handed over, and what the broker and the office tell each other.

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "calls.hxx"
#include "channel.hxx"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <future>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

using ooodd::Calls;
using ooodd::Descriptor;
using ooodd::Listener;
using ooodd::Session;

namespace
{

using Bytes = std::vector<std::uint8_t>;

// A limit that catches a hang.
constexpr int patience = 20'000;

std::pair<Descriptor, Descriptor> connected(int type)
{
    std::array<int, 2> ends{};
    REQUIRE(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) == 0);
    return {Descriptor(ends[0]), Descriptor(ends[1])};
}

Bytes block(const Bytes& message, std::uint8_t messages = 1)
{
    const auto size = static_cast<std::uint32_t>(message.size());
    Bytes all{
        static_cast<std::uint8_t>(size >> 24), static_cast<std::uint8_t>(size >> 16), static_cast<std::uint8_t>(size >> 8),
        static_cast<std::uint8_t>(size), 0, 0, 0, messages};
    all.insert(all.end(), message.begin(), message.end());
    return all;
}

// A call of function 5 with a long header, a release, a reply, and a call with a short header.
const Bytes call = block({0xf8, 5, 1, 2, 3});
const Bytes release = block({0xf8, 2, 1});
const Bytes reply = block({0x88, 0, 7});
const Bytes shortCall = block({3});

void send(int to, const Bytes& data)
{
    REQUIRE(::send(to, data.data(), data.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(data.size()));
}

// Returns the next message of a control connection; "end" at its end.
std::string next(int control)
{
    pollfd source{control, POLLIN, 0};
    REQUIRE(poll(&source, 1, patience) == 1);
    std::array<char, 8192> text{};
    const ssize_t size = recv(control, text.data(), text.size(), MSG_DONTWAIT);
    REQUIRE(size >= 0);
    return size == 0 ? "end" : std::string(text.data(), static_cast<std::size_t>(size));
}

std::string ask(int control, const std::string& text)
{
    REQUIRE(::send(control, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
    return next(control);
}

struct Place
{
    Place()
    {
        std::string name = std::filesystem::temp_directory_path() / "ooodd-XXXXXX";
        REQUIRE(mkdtemp(name.data()) != nullptr);
        directory = name;
        path = directory / "clients";
    }
    ~Place() { std::filesystem::remove_all(directory); }

    Descriptor connect() const
    {
        Descriptor control(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        const std::string name = path;
        std::copy(name.begin(), name.end(), address.sun_path);
        REQUIRE(::connect(control.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
        return control;
    }

    std::filesystem::path directory;
    std::filesystem::path path;
};

void handOver(int control, const std::string& text, const std::vector<int>& numbers)
{
    iovec part{const_cast<char*>(text.data()), text.size()}; // sendmsg only reads it
    std::vector<std::uint8_t> ancillary(CMSG_SPACE(numbers.size() * sizeof(int)));
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!numbers.empty())
    {
        message.msg_control = ancillary.data();
        message.msg_controllen = ancillary.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(numbers.size() * sizeof(int));
        std::memcpy(CMSG_DATA(header), numbers.data(), numbers.size() * sizeof(int));
    }
    REQUIRE(sendmsg(control, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
}

std::size_t openDescriptors()
{
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

// A session whose client and broker are this test. The listener answers the broker as it does in an office: the thread
// that has accepted the session goes on to accept.
struct Scene
{
    Scene()
        : listener(place.path)
    {
        std::tie(client, officeEnd) = connected(SOCK_STREAM);
        broker = place.connect();
        handOver(broker.get(), "ooodd 1 session", {officeEnd.get()});
        session = listener.accept();
        REQUIRE(session != nullptr);
        REQUIRE(next(broker.get()) == "began");
        accepting = std::thread([this] { listener.accept(); });
    }
    ~Scene()
    {
        listener.stop();
        accepting.join();
    }

    // Reads as LibreOffice does, a header and then a body, until `size` bytes are there.
    Bytes read(std::size_t size)
    {
        Bytes all(size);
        const std::size_t head = std::min<std::size_t>(8, size);
        std::size_t got = session->read(all.data(), head);
        if (got == head && size > head)
        {
            got += session->read(all.data() + head, size - head);
        }
        all.resize(got);
        return all;
    }

    // Reads in another thread, as the office's reader does.
    std::future<Bytes> reading(std::size_t size)
    {
        return std::async(std::launch::async, [this, size] { return read(size); });
    }

    Place place;
    Listener listener;
    std::thread accepting;
    Descriptor client;
    Descriptor officeEnd;
    Descriptor broker;
    std::shared_ptr<Session> session;
};

}

TEST_CASE("calls are counted whatever the pieces are in which their bytes come")
{
    std::mt19937 random(1);
    for (int round = 0; round < 300; ++round)
    {
        Bytes all;
        std::uint64_t expected = 0;
        for (int index = 0; index < 20; ++index)
        {
            const std::array<const Bytes*, 4> kinds{&call, &release, &shortCall, &reply};
            const std::size_t kind = random() % kinds.size();
            all.insert(all.end(), kinds[kind]->begin(), kinds[kind]->end());
            expected += kind % 2 == 0 ? 1U : 0U;
        }
        Calls calls;
        for (std::size_t at = 0; at < all.size();)
        {
            const std::size_t piece = std::min<std::size_t>(1 + random() % 12, all.size() - at);
            calls.received(all.data() + at, piece);
            at += piece;
        }
        REQUIRE(calls.total() == expected);
        REQUIRE(calls.underWay() == expected);
        REQUIRE_FALSE(calls.isAmidBlock());
        for (std::uint64_t index = 0; index < expected; ++index)
        {
            calls.sent(reply.data(), reply.size());
        }
        REQUIRE(calls.underWay() == 0);
    }
}

TEST_CASE("a call is under way until its reply, and a long block is amid until its end")
{
    Calls calls;
    Bytes large(100'000, 9);
    large[0] = 0xf8;
    large[1] = 4;
    const Bytes sent = block(large);
    calls.received(sent.data(), 8);
    CHECK(calls.isAmidBlock());
    calls.received(sent.data() + 8, sent.size() - 9);
    CHECK(calls.isAmidBlock());
    CHECK(calls.underWay() == 1);
    calls.received(sent.data() + sent.size() - 1, 1);
    CHECK_FALSE(calls.isAmidBlock());
    calls.sent(reply.data(), reply.size());
    CHECK(calls.underWay() == 0);
}

TEST_CASE("what can't be followed counts as a call under way, for ever")
{
    const std::array<Bytes, 3> strange{block({0xf8, 5}, 2), block({0xf8, 5}, 0), Bytes(8, 0)};
    for (const Bytes& bytes : strange)
    {
        Calls calls;
        calls.received(bytes.data(), bytes.size());
        CHECK(calls.underWay() == 1);
        calls.received(call.data(), call.size());
        calls.sent(reply.data(), reply.size());
        CHECK(calls.underWay() == 1);
    }
    Calls calls;
    calls.sent(reply.data(), reply.size()); // to no call
    CHECK(calls.underWay() == 1);
}

TEST_CASE("bytes go both ways, and the end comes after the last")
{
    Scene scene;
    Bytes large(3'000'000, 9);
    large[0] = 0xf8;
    large[1] = 4;
    const Bytes data = block(large);
    std::thread writer([&] { send(scene.client.get(), data); });
    CHECK(scene.read(data.size()) == data);
    writer.join();
    send(scene.client.get(), call);
    send(scene.client.get(), shortCall); // both at once: the second is buffered
    CHECK(scene.read(call.size()) == call);
    CHECK(scene.read(shortCall.size()) == shortCall);

    std::thread office([&] { scene.session->write(data.data(), data.size()); });
    Bytes got(data.size());
    std::size_t size = 0;
    while (size < got.size())
    {
        const ssize_t more = recv(scene.client.get(), got.data() + size, got.size() - size, 0);
        REQUIRE(more > 0);
        size += static_cast<std::size_t>(more);
    }
    office.join();
    CHECK(got == data);

    send(scene.client.get(), call);
    scene.client.reset();
    CHECK(scene.read(call.size()) == call);
    CHECK(scene.read(8).empty());
    scene.session->close();
    CHECK(next(scene.broker.get()).substr(0, 16) == "closed client 4 ");
    scene.session->release();
    CHECK(next(scene.broker.get()) == "end");
}

TEST_CASE("a piece of a block before the end is what there is")
{
    Scene scene;
    send(scene.client.get(), {0, 0, 0});
    shutdown(scene.client.get(), SHUT_WR);
    CHECK(scene.read(8) == Bytes{0, 0, 0});
    CHECK(scene.read(8).empty());
}

TEST_CASE("the broker is answered while the office waits for the client, and while it does not")
{
    Scene scene;
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 0 0 ");
    auto read = scene.reading(call.size());
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 0 0 ");
    send(scene.client.get(), {call.begin(), call.begin() + 3});
    std::string calls;
    do
    {
        calls = ask(scene.broker.get(), "calls");
        CHECK(calls.substr(0, 10) == "calls 0 0 ");
    } while (calls.substr(calls.size() - 4) != " 1 0"); // amid a block
    send(scene.client.get(), {call.begin() + 3, call.end()});
    CHECK(read.get() == call);
    scene.session->write(reply.data(), reply.size());
    read = scene.reading(call.size());
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 1 0 ");
    send(scene.client.get(), call);
    CHECK(read.get() == call);
    read = scene.reading(reply.size());
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 2 1 ");
    scene.session->write(reply.data(), reply.size());
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 2 0 ");
    const std::string said(call.begin(), call.end());
    CHECK(ask(scene.broker.get(), "opening") == "opening " + said + said);
    calls = ask(scene.broker.get(), "calls");
    CHECK(calls.substr(0, 10) == "calls 2 0 ");
    CHECK(calls.substr(calls.size() - 4) == " 0 0");
    scene.session->write(call.data(), call.size());
    calls = ask(scene.broker.get(), "calls");
    CHECK(calls.substr(0, 10) == "calls 2 0 ");
    CHECK(calls.substr(calls.size() - 4) == " 0 1"); // the office waits
    send(scene.client.get(), reply);
    CHECK(read.get() == reply);
    scene.session->close();
}

TEST_CASE("a session is ended only if nothing is under way and nothing has come since")
{
    Scene scene;
    send(scene.client.get(), call);
    CHECK(scene.read(call.size()) == call);
    auto read = scene.reading(call.size());
    CHECK(ask(scene.broker.get(), "end 1") == "busy"); // without its reply
    scene.session->write(reply.data(), reply.size());
    CHECK(ask(scene.broker.get(), "calls").substr(0, 10) == "calls 1 0 ");
    send(scene.client.get(), call);
    CHECK(read.get() == call);
    scene.session->write(reply.data(), reply.size());
    send(scene.client.get(), call); // nobody reads yet
    CHECK(ask(scene.broker.get(), "end 2") == "busy");
    CHECK(scene.read(call.size()) == call);
    scene.session->write(reply.data(), reply.size());
    send(scene.client.get(), call);
    send(scene.client.get(), shortCall);
    CHECK(scene.read(call.size()) == call); // the other is received with it, and not taken yet
    scene.session->write(reply.data(), reply.size());
    CHECK(ask(scene.broker.get(), "end 4") == "busy");
    CHECK(scene.read(shortCall.size()) == shortCall);
    // A reply that has not been sent to its end.
    Bytes large(10'000'000, 9);
    large[0] = 0x88;
    const Bytes all = block(large);
    auto written = std::async(std::launch::async, [&] { scene.session->write(all.data(), all.size()); });
    Bytes got(5 * reply.size() + all.size());
    REQUIRE(recv(scene.client.get(), got.data(), 4 * reply.size() + 1, MSG_WAITALL) > 0); // so it has begun
    CHECK(ask(scene.broker.get(), "end 5") == "busy");
    REQUIRE(recv(scene.client.get(), got.data(), all.size() - 1, MSG_WAITALL) == static_cast<ssize_t>(all.size()) - 1);
    written.get();
    CHECK(ask(scene.broker.get(), "end 5") == "ended");
}

TEST_CASE("a call is either made or the session was ended before it, however close they come")
{
    int ended = 0;
    for (int round = 0; round < 200; ++round)
    {
        Scene scene;
        auto read = scene.reading(call.size());
        std::thread client(
            [&]
            {
                for (volatile int spin = 0; spin < round * 50; spin = spin + 1)
                {
                }
                ::send(scene.client.get(), call.data(), call.size(), MSG_NOSIGNAL);
            });
        const std::string answer = ask(scene.broker.get(), "end 0");
        client.join();
        if (answer == "ended")
        {
            ++ended;
            CHECK(read.get().empty());
        }
        else
        {
            CHECK(answer == "busy");
            CHECK(read.get() == call);
        }
        scene.session->close();
    }
    MESSAGE(ended << " of 200 sessions were ended before the call");
}

TEST_CASE("a session goes on whatever the broker does to the flag that both share")
{
    Scene scene;
    auto read = scene.reading(call.size());
    // It is the description of the socket that the office has: this test has passed it on, and kept a duplicate.
    const Descriptor office(fcntl(scene.officeEnd.get(), F_DUPFD_CLOEXEC, 0));
    for (int count = 0; count < 3; ++count)
    {
        REQUIRE(fcntl(office.get(), F_SETFL, O_NONBLOCK) == 0);
        send(scene.client.get(), call);
        CHECK(read.get() == call);
        REQUIRE(fcntl(office.get(), F_SETFL, O_NONBLOCK) == 0);
        read = scene.reading(call.size());
        const Bytes large(3'000'000);
        auto written = std::async(std::launch::async, [&] { scene.session->write(large.data(), large.size()); });
        Bytes got(large.size());
        CHECK(recv(scene.client.get(), got.data(), got.size(), MSG_WAITALL) == static_cast<ssize_t>(got.size()));
        written.get();
    }
    scene.session->close();
}

TEST_CASE("a session that is quiet is ended")
{
    Scene scene;
    send(scene.client.get(), call);
    CHECK(scene.read(call.size()) == call);
    scene.session->write(reply.data(), reply.size());
    auto read = scene.reading(call.size());
    for (const std::string wrong : {"end 0", "end 2", "end ", "end x", "end 1x", "end -1", "end 99999999999999999999"})
    {
        CHECK(ask(scene.broker.get(), wrong) == "busy");
    }
    CHECK(ask(scene.broker.get(), "what") == "unknown");
    CHECK(ask(scene.broker.get(), "end 1") == "ended");
    CHECK(next(scene.broker.get()) == "closed office 0 13 11");
    CHECK(read.get().empty());
    std::array<std::uint8_t, 64> rest{};
    CHECK(recv(scene.client.get(), rest.data(), rest.size(), 0) == static_cast<ssize_t>(reply.size()));
    CHECK(recv(scene.client.get(), rest.data(), rest.size(), 0) == 0);
}

TEST_CASE("a session outlives the broker")
{
    Scene scene;
    scene.broker.reset();
    send(scene.client.get(), call);
    CHECK(scene.read(call.size()) == call);
    auto read = scene.reading(call.size());
    send(scene.client.get(), call);
    CHECK(read.get() == call);
    scene.session->write(reply.data(), reply.size());
    scene.session->close();
}

TEST_CASE("a client that has gone was first, whoever sees it")
{
    Scene scene;
    scene.client.reset();
    CHECK_THROWS_AS(scene.session->write(call.data(), call.size()), std::system_error);
    scene.session->close();
    CHECK(next(scene.broker.get()).substr(0, 14) == "closed client ");
}

TEST_CASE("close ends a read and a write that wait")
{
    Scene scene;
    auto read = scene.reading(8);
    auto written = std::async(
        std::launch::async,
        [&]
        {
            const Bytes endless(10'000'000);
            CHECK_THROWS_AS(scene.session->write(endless.data(), endless.size()), std::system_error);
        });
    CHECK(ask(scene.broker.get(), "calls").substr(0, 6) == "calls ");
    scene.session->close();
    CHECK(read.get().empty());
    written.get();
}

TEST_CASE("a client that is handed over has a session")
{
    const Place place;
    Listener listener(place.path);
    auto [client, office] = connected(SOCK_STREAM);
    const Descriptor control = place.connect();
    handOver(control.get(), "ooodd 1 session", {office.get()});
    office.reset();
    const std::shared_ptr<Session> session = listener.accept();
    REQUIRE(session != nullptr);
    CHECK(next(control.get()) == "began");
    send(client.get(), call);
    Bytes got(call.size());
    CHECK(session->read(got.data(), got.size()) == got.size());
    CHECK(got == call);
}

TEST_CASE("it tells a socket beside its own that it listens, if there is one that takes it")
{
    const Place place;
    const std::string path = place.path.parent_path() / "ready";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), address.sun_path);
    const Descriptor waiting(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    REQUIRE(bind(waiting.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    const std::size_t before = openDescriptors();
    {
        const Listener listener(place.path);
        CHECK(next(waiting.get()) == "ready");
        CHECK(place.connect());
    }
    // Nobody reads what else is sent there, and that holds nobody up.
    for (int count = 0; count < 100; ++count)
    {
        const Listener listener(place.path);
    }
    CHECK(openDescriptors() == before);
    unlink(path.c_str());
}

TEST_CASE("whatever else a peer does, it is hung up on, nothing is left open, and the next one is served")
{
    const Place place;
    Listener listener(place.path);
    auto [client, office] = connected(SOCK_STREAM);
    auto [datagram, other] = connected(SOCK_DGRAM);
    auto accepted = std::async(std::launch::async, [&] { return listener.accept(); });
    const std::size_t before = openDescriptors();
    const std::string good = "ooodd 1 session";
    const std::vector<std::pair<std::string, std::vector<int>>> wrong{
        {good, {}},
        {good, {office.get(), office.get()}},
        {good, {office.get(), office.get(), office.get(), office.get()}},
        {good, {datagram.get()}},
        {good, {STDERR_FILENO}},
        {"ooodd 2 session", {office.get()}},
        {"x", {office.get()}},
        {good + std::string(1000, ' '), {office.get()}},
    };
    for (const auto& [text, numbers] : wrong)
    {
        const Descriptor control = place.connect();
        handOver(control.get(), text, numbers);
        CHECK(next(control.get()) == "end");
    }
    {
        const Descriptor gone = place.connect();
    }
    CHECK(openDescriptors() == before);
    const Descriptor control = place.connect();
    handOver(control.get(), good, {office.get()});
    CHECK(accepted.get() != nullptr);
}

TEST_CASE("who says nothing keeps nobody waiting, and may hand a client over later; with too many, the oldest has to go")
{
    const Place place;
    Listener listener(place.path);
    const std::string good = "ooodd 1 session";
    auto [client, office] = connected(SOCK_STREAM);
    const Descriptor oldest = place.connect();
    std::vector<Descriptor> silent;
    for (int number = 0; number < 16; ++number)
    {
        silent.push_back(place.connect());
    }
    for (const Descriptor* each : std::array<const Descriptor*, 2>{&silent.back(), &silent.front()})
    {
        auto accepted = std::async(std::launch::async, [&] { return listener.accept(); });
        handOver(each->get(), good, {office.get()});
        const std::shared_ptr<Session> session = accepted.get();
        REQUIRE(session != nullptr);
        CHECK(next(each->get()) == "began");
        CHECK(next(oldest.get()) == "end");
    }
}

TEST_CASE("stop ends accept, before it and amid it, and while a peer is silent")
{
    const Place place;
    Listener listener(place.path);
    auto accepted = std::async(std::launch::async, [&] { return listener.accept(); });
    const Descriptor silent = place.connect();
    listener.stop();
    CHECK(accepted.get() == nullptr);
    CHECK(listener.accept() == nullptr);
}

TEST_CASE("a listener takes the place of one that is left, and says where it can't")
{
    const Place place;
    {
        const Listener left(place.path);
    }
    const Listener listener(place.path);
    const Descriptor control = place.connect();
    CHECK_THROWS_WITH_AS(
        Listener("/nowhere/clients"), doctest::Contains("/nowhere/clients"), std::system_error);
    CHECK_THROWS_AS(Listener(std::string(200, 'x')), std::system_error);
}
