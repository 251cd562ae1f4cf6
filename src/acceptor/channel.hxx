// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How an office gets its clients' sockets from the broker, and what the two tell each other about a session. No UNO in
// here. The protocol is in docs/acceptor.md.

#pragma once

#include "calls.hxx"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <poll.h>

namespace ooodd
{

// A descriptor that is closed with its owner.
class Descriptor
{
public:
    Descriptor() = default;
    explicit Descriptor(int number) : number(number) {}
    Descriptor(Descriptor&& other) noexcept : number(other.release()) {}
    Descriptor& operator=(Descriptor&& other) noexcept;
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() { reset(); }

    int get() const { return number; }
    explicit operator bool() const { return number >= 0; }
    int release();
    void reset();

private:
    int number = -1;
};

// The connection of one client, as the office reads and writes it, and the control connection that the broker keeps to
// it. One thread reads at a time, one writes, and one answers the broker; any may call `close` and `release`.
class Session
{
public:
    // Takes a stream socket, and the control connection. Tells the broker that the session has begun.
    Session(Descriptor client, Descriptor control);
    ~Session();

    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Waits for `size` bytes. Returns how many there are: fewer only at the end. Throws std::system_error.
    std::size_t read(std::uint8_t* data, std::size_t size);

    // Waits until all bytes are written. Throws std::system_error.
    void write(const std::uint8_t* data, std::size_t size);

    // Ends the connection for both sides, and any wait. May be called again.
    void close() noexcept;

    // Ends both connections, the client's first. That the control connection ends tells the broker that nothing of the
    // office has the session any more. May be called again.
    void release() noexcept;

    // The control connection, which stays the session's: `answer` is to be called when it can be read.
    int broker() const { return control.get(); }

    // Answers one message of the broker, and does not wait. False if no other will come.
    bool answer();

private:
    std::size_t takeBuffered(std::uint8_t* data, std::size_t size);
    std::size_t receive(std::uint8_t* data, std::size_t size);
    std::size_t take(std::uint8_t* data, std::size_t size, std::size_t all);
    void count(const std::uint8_t* data, std::size_t size);
    void end(std::string_view total);
    void tell(const std::string& text) const noexcept;
    std::string calls() const;
    bool isStillAt(std::string_view total) const;
    void moved();

    Descriptor client;
    Descriptor control;
    // Held by who takes bytes that have been received, and by who answers the broker by what has been taken. So a call is
    // taken either before the broker is answered, which then knows of it, or after that; and if the answer was that the
    // session is ended, the call is dropped.
    std::mutex taking;
    Calls counts;
    // The office's own calls, in the same way: what is sent is received by the client.
    Calls officeCalls;
    // What has been received from the client and not been read. Begins where `next` is.
    std::vector<std::uint8_t> buffer;
    std::size_t next = 0;
    std::size_t filled = 0;
    // The client's first bytes, for the broker.
    std::string opening;
    std::atomic<bool> closed{false};
    // Whether something that is counted already is still being sent.
    std::atomic<bool> writing{false};
    // Whether the client was the first to end the connection.
    std::atomic<bool> clientEnded{false};
    // When a byte was last read or written, in milliseconds of CLOCK_MONOTONIC.
    std::atomic<std::int64_t> lastMoved{0};
    std::atomic<std::uint64_t> bytesRead{0};
    std::atomic<std::uint64_t> bytesWritten{0};
};

// The socket at which the broker hands clients over.
class Listener
{
public:
    // Binds a socket to a path, in the place of one that is there, and tells the socket `ready` beside it that it listens.
    // Throws std::system_error.
    explicit Listener(const std::string& path);
    ~Listener();

    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

    // Waits for the next client, and answers the broker's questions about the others meanwhile; none after `stop`. Whoever
    // hands over something else is hung up on. Whoever connects and says nothing keeps nobody waiting, and may still hand a
    // client over: a broker that is killed between the two has left its connection to the next one. Never throws for what
    // a peer does.
    std::shared_ptr<Session> accept();

    // Ends `accept`, for good. May be called by any thread.
    void stop() noexcept;

private:
    // With more connections that say nothing, the oldest is hung up on.
    static constexpr std::size_t mostSilent = 16;

    void answer(const pollfd* sources);
    void admit();
    static Descriptor receive(int control);

    std::string path;
    Descriptor socket;
    Descriptor stopped;
    // Who has connected and said nothing, the oldest first.
    std::vector<Descriptor> silent;
    // The sessions of which the broker may ask something.
    std::vector<std::shared_ptr<Session>> sessions;
};

}
